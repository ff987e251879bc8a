// AMX's tile instructions in plain C++, for machines without them.
#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>

namespace tile_model {

struct Tile {
  int num_rows = 0;
  int row_bytes = 0;
  alignas(64) unsigned char data[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local bool is_configured = false;

inline void configure(const void* operand) {
  const unsigned char* bytes = static_cast<const unsigned char*>(operand);
  assert(bytes[0] == 1 && bytes[1] == 0);
  for (int t = 0; t < 8; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
    tiles[t].row_bytes = row_bytes;
    tiles[t].num_rows = bytes[48 + t];
    assert(row_bytes <= 64 && tiles[t].num_rows <= 16);
    std::memset(tiles[t].data, 0, sizeof tiles[t].data);
  }
  is_configured = true;
}

inline void release() { is_configured = false; }

inline Tile& configured(int t) {
  assert(is_configured && tiles[t].num_rows > 0 && tiles[t].row_bytes > 0);
  return tiles[t];
}

inline void zero(int t) { std::memset(configured(t).data, 0, sizeof tiles[t].data); }

inline void load(int t, const void* from, int64_t stride) {
  Tile& tile = configured(t);
  zero(t);
  for (int m = 0; m < tile.num_rows; ++m) {
    std::memcpy(tile.data[m], static_cast<const char*>(from) + m * stride, tile.row_bytes);
  }
}

inline void store(int t, void* to, int64_t stride) {
  const Tile& tile = configured(t);
  for (int m = 0; m < tile.num_rows; ++m) {
    std::memcpy(static_cast<char*>(to) + m * stride, tile.data[m], tile.row_bytes);
  }
}

inline float widened(const unsigned char* half) {
  unsigned char bytes[4] = {0, 0, half[0], half[1]};
  float value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// sums[m][n] += x[m][2k] * weight[k][n][0] + x[m][2k + 1] * weight[k][n][1]
inline void add_dots(int sums, int x, int weight) {
  Tile &c = configured(sums), &a = configured(x), &b = configured(weight);
  assert(c.num_rows == a.num_rows && c.row_bytes == b.row_bytes && a.row_bytes / 4 == b.num_rows);
  for (int m = 0; m < c.num_rows; ++m) {
    for (int k = 0; k < b.num_rows; ++k) {
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        float sum;
        std::memcpy(&sum, c.data[m] + 4 * n, sizeof sum);
        sum += widened(a.data[m] + 4 * k) * widened(b.data[k] + 4 * n);
        sum += widened(a.data[m] + 4 * k + 2) * widened(b.data[k] + 4 * n + 2);
        std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
}

}  // namespace tile_model

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig tile_model::configure
#define _tile_release tile_model::release
#define _tile_zero tile_model::zero
#define _tile_loadd tile_model::load
#define _tile_stored tile_model::store
#define _tile_dpbf16ps tile_model::add_dots
