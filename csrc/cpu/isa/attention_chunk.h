// Which tokens of a chunk the lines of a tile see.
#pragma once

#include "cpu/kernels.h"

#ifndef VLLM_ISA
#error "VLLM_ISA must name the namespace of this instruction set"
#endif

namespace vllm::cpu::VLLM_ISA {

// The blocks of one chunk that hold visible tokens: table entries behind the window may be stale.
struct Chunk {
  int first_block;
  int num_blocks;
  int base;   // position of the first token of the first block
  int begin;  // visible tokens of the tile, from base
  int end;
};

struct Span {
  int begin;
  int end;
};

inline Chunk chunk_at(const AttentionShape& shape, const AttentionTile& tile, int position) {
  const int first = (tile.kv_begin > position ? tile.kv_begin : position) / shape.block_size;
  const int base = first * shape.block_size;
  const int stop = position + shape.chunk < tile.kv_end ? position + shape.chunk : tile.kv_end;
  const int blocks = (stop - base + shape.block_size - 1) / shape.block_size;
  return {first, blocks, base, tile.kv_begin > base ? tile.kv_begin - base : 0, stop - base};
}

// What one query of the tile sees of the chunk; nothing: begin == end.
inline Span visible(const AttentionShape& shape, const AttentionTile& tile, const Chunk& chunk,
                    int query) {
  const int position = tile.first_position + query - chunk.base;
  int begin = chunk.begin;
  if (shape.window > 0 && position - shape.window + 1 > begin) begin = position - shape.window + 1;
  if (begin > chunk.end) begin = chunk.end;
  int end = position + 1 < chunk.end ? position + 1 : chunk.end;
  if (end < begin) end = begin;
  return {begin, end};
}

}  // namespace vllm::cpu::VLLM_ISA
