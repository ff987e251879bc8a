"""/v1/models: one model, under every name it is served as."""

from __future__ import annotations

from vllm.entrypoints.openai.errors import UnknownModel
from vllm.entrypoints.openai.protocol.common import now_s, random_id
from vllm.entrypoints.openai.protocol.models import ModelCard, ModelList, ModelPermission
from vllm.entrypoints.openai.serving.context import ServingContext


class ServingModels:
    def __init__(self, context: ServingContext) -> None:
        model, created = context.model, now_s()
        self.cards = {
            name: ModelCard(
                name,
                created,
                str(model.model),
                model.max_model_len,
                [ModelPermission(f"modelperm-{random_id()}", created)],
            )
            for name in model.served_model_name
        }

    def list(self) -> ModelList:
        return ModelList(list(self.cards.values()))

    def get(self, name: str) -> ModelCard:
        if name not in self.cards:
            raise UnknownModel(f"model {name!r} is not served here", "model")
        return self.cards[name]
