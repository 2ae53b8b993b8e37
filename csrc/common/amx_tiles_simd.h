// The tile registers of AMX: eight of 16 rows of 64 bytes, and their product of bfloat16 pairs.
// Compiled once for each instruction set by foreach_isa.h after units_simd.h, inside a namespace.

#if defined(MIXER_KERNELS_ISA_AMX)
// Rows of a tile, and units of a row: two bfloat16 of an operand, or one float32 of an accumulator.
constexpr int64_t kTileSide = kStripRows;
constexpr int64_t kTileUnits = kTileSide * kTileSide;

// Assembler, as compilers know the registers of their intrinsics by constants of the preprocessor alone.
class AmxTiles {
 public:
  AmxTiles() = default;
  AmxTiles(const AmxTiles&) = delete;

  template <int kTile>
  void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }

  template <int kTile>
  void load_tile(const void* from, int64_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(kTile) : "memory");
  }

  template <int kTile>
  void store_tile(void* to, int64_t step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(kTile) : "memory");
  }

  // acc (16, 16) += left (16, 32) * right (32, 16), whose units hold two rows of a column.
  template <int kAcc, int kLeft, int kRight>
  void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kAcc), "i"(kLeft), "i"(kRight));
  }

  // Whole tiles, as long as it lives. The thread's registers are its own, and nobody else's meanwhile.
  class Session {
   public:
    Session() {
      struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } const configuration;
      asm volatile("ldtilecfg %0" ::"m"(configuration));
    }
    ~Session() { asm volatile("tilerelease"); }
    Session(const Session&) = delete;
  };
};

// The same in memory, for tests on a CPU without AMX.
class EmulatedAmxTiles {
 public:
  struct Session {};

  template <int kTile>
  void clear() {
    std::memset(tiles_[kTile], 0, sizeof(tiles_[kTile]));
  }

  template <int kTile>
  void load_tile(const void* from, int64_t step) {
    for (int64_t row = 0; row < kTileSide; ++row) {
      std::memcpy(tiles_[kTile][row], static_cast<const char*>(from) + row * step, 4 * kTileSide);
    }
  }

  template <int kTile>
  void store_tile(void* to, int64_t step) {
    for (int64_t row = 0; row < kTileSide; ++row) {
      std::memcpy(static_cast<char*>(to) + row * step, tiles_[kTile][row], 4 * kTileSide);
    }
  }

  template <int kAcc, int kLeft, int kRight>
  void dot() {
    for (int64_t row = 0; row < kTileSide; ++row) {
      Vector<float> sum{};
      for (int64_t k = 0; k < kTileSide; ++k) {
        sum = multiply_add<c10::BFloat16>(sum, broadcast(tiles_[kLeft][row][k]), load(tiles_[kRight][k]));
      }
      uint32_t* const acc = tiles_[kAcc][row];
      store(acc, (Vector<uint32_t>)((Vector<float>)load(acc) + sum));
    }
  }

 private:
  alignas(64) uint32_t tiles_[8][kTileSide][kTileSide];
};
#endif
