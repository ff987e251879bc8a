"""Weights to start from, with heads that look back already in place.

A story needs its names repeated correctly, and a model finds out how only when two layers agree: a
head that passes each token's predecessor on, and a later one that looks for places whose
predecessor is the current token and repeats what stands there. From random weights that had not
happened after 2.4 million tokens, most of our budget. Here one head of each kind starts out roughly
right, on random projections; training does the rest and may move everything.
"""

import torch
from transformers import PreTrainedModel

# All structured weights are of the size of ordinary ones or larger: with smaller ones the first
# hundred steps of the optimizer wiped them out.
EMBEDDING_STD = 0.3
FINAL_NORM = 0.2  # makes up for large embeddings where they serve as the output layer
CONSTANT = 1.8  # what every embedding starts with in dimension 0, so that heads can rely on it
SHARPNESS = 1.2  # of the attention to the predecessor: it starts with six sevenths of the weight
NUM_FAST = 8  # rotary frequencies, from the fastest on, that find the predecessor
MATCH_STD = 0.165  # projection of token identities; gives matches a score of about ten
PASS_STD = 0.04  # keeps the passed-on token as large as the embedding it is added to
READ_FACTOR = 2.2  # undoes PASS_STD when the passed-on token is read
COPY_STD, COPY_FACTOR = 0.09, 0.6


@torch.no_grad()
def initialise(model: PreTrainedModel, seed: int) -> None:
    """Overwrite the weights of a Llama-like model that has been built with random ones.

    Branches start at zero output, so that embeddings are not drowned; then the first head of layer
    0 is made to look at the predecessor and the first of layer 1 to repeat what followed.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, std: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            parameter.zero_()
    config = model.config
    hidden = config.hidden_size
    head_dim = config.head_dim or hidden // config.num_attention_heads
    half = head_dim // 2
    embeddings = model.get_input_embeddings().weight
    embeddings.copy_(normal(*embeddings.shape, EMBEDDING_STD))
    embeddings[:, 0] = CONSTANT
    model.model.norm.weight.fill_(FINAL_NORM)
    first, second = (layer.self_attn for layer in model.model.layers[:2])

    # A key rotated by its position meets a query rotated by one less than its own: the score is a
    # sum of cos((distance - 1) * frequency), largest at distance 1.
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    fast = slice(0, min(NUM_FAST, half))
    for projection in (first.q_proj, first.k_proj):
        projection.weight[:head_dim] = 0.0
    first.k_proj.weight[fast, 0] = SHARPNESS
    first.q_proj.weight[fast, 0] = SHARPNESS * frequencies[fast].cos()
    first.q_proj.weight[half : half + fast.stop, 0] = -SHARPNESS * frequencies[fast].sin()

    # Identities are compared in the slow rotary dimensions, which distance hardly turns.
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, head_dim)])
    identity = torch.zeros(head_dim, hidden)
    identity[slow] = normal(len(slow), hidden, MATCH_STD)
    identity[:, 0] = 0.0
    passed = normal(hidden, head_dim, PASS_STD)
    first.v_proj.weight[:head_dim] = identity
    first.o_proj.weight[:, :head_dim] = passed
    second.q_proj.weight[:head_dim] = identity
    second.k_proj.weight[:head_dim] = 0.0
    second.k_proj.weight[slow] = READ_FACTOR * passed.T[slow]
    copied = normal(head_dim, hidden, COPY_STD)
    copied[:, 0] = 0.0
    second.v_proj.weight[:head_dim] = copied
    second.o_proj.weight[:, :head_dim] = COPY_FACTOR * copied.T
