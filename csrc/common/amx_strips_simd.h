// Operands of products in the tiles of AMX: bfloat16, and float32 as three bfloat16 parts.
// Compiled once for each instruction set by foreach_isa.h after amx_tiles_simd.h, inside a namespace.
//
// Operands lie in strips: 16 rows of a left one, 16 columns of a right one, and of those tile after tile along the
// depth, 32 elements deep, for each step the tiles of all parts.

#if defined(MIXER_KERNELS_ISA_AMX)
using Bits = Vector<uint32_t>;

constexpr int64_t kStep = 2 * kTileSide;  // of the depth

inline int64_t depth_steps(int64_t depth) { return (depth + kStep - 1) / kStep; }

// A vector in bfloat16 parts, the largest first, each in the upper halves of its lanes.
template <int kParts>
struct Split {
  Bits parts[kParts];

  explicit Split(Vector<float> value) {
    // What is infinite, not a number, or would round to infinity is a smallest part, whose only partner is the other
    // operand's largest: the sign of their product is right, and nothing multiplies it by a zero.
    constexpr uint32_t kBeyond = 0x7f7f8000, kPart = 0xffff0000;
    const Bits keep = ((Bits)value & 0x7fffffff) < kBeyond ? Bits{} + kPart : Bits{};
    for (int part = 0; part + 1 < kParts; ++part) {
      // Rounded, half away from zero.
      parts[part] = ((Bits)value + 0x8000) & keep;
      value -= (Vector<float>)parts[part];
    }
    // All of the rest, but for bits below the smallest normal number.
    parts[kParts - 1] = (Bits)value & kPart;
  }

  Bits units_with(const Split& high, int part) const { return parts[part] >> 16 | high.parts[part]; }
};

// Rounded to a single part when it meets its partner.
template <>
struct Split<1> {
  Vector<float> value;

  explicit Split(Vector<float> from) : value(from) {}

  Bits units_with(const Split& high, int) const { return round_to_units<c10::BFloat16>(value, high.value); }
};

// An operand, in room for `width` rows of a left one or columns of a right one. A unit holds two elements of the depth,
// half a step apart.
template <int kParts>
class Strips {
 public:
  Strips(int64_t width, int64_t depth)
      : strips_((width + kTileSide - 1) / kTileSide),
        step_(depth_steps(depth) * kParts * kTileUnits),
        units_(strips_ * step_) {}

  const uint32_t* strip(int64_t index) const { return units_.get() + index * step_; }
  // From a strip to the next.
  int64_t step() const { return step_; }

  // Rows [first, first + rows) of a left operand, of a right one, or of both in one, from accumulators; first is a
  // multiple of kStep, columns are whole vectors.
  template <bool kLeft, bool kRight>
  static void pack(const float* from, int64_t columns, int64_t first, int64_t rows, Strips* left, Strips* right) {
    const Vector<float> zero{};
    for (int64_t r = 0; r < rows; r += r % kTileSide == kTileSide - 1 ? kTileSide + 1 : 1) {
      const bool pair = r + kTileSide < rows;
      const float *const low = from + r * columns, *const high = low + kTileSide * columns;
      const int64_t row = first + r, in_tile = row % kTileSide * kTileSide;
      uint32_t* left_to = kLeft ? left->tile(row / kTileSide, 0, 0) + in_tile : nullptr;
      uint32_t* right_to = kRight ? right->tile(0, row / kStep, 0) + in_tile : nullptr;
      for (int64_t c = 0; c < columns; c += kStep) {
        const bool whole = c + kTileSide < columns;
        const Split<kParts> low0(load(low + c));
        const Split<kParts> low1(whole ? load(low + c + kTileSide) : zero);
        const Split<kParts> high0(pair ? load(high + c) : zero);
        const Split<kParts> high1(pair && whole ? load(high + c + kTileSide) : zero);
        for (int part = 0; part < kParts; ++part) {
          if constexpr (kLeft) {
            store(left_to + part * kTileUnits, low0.units_with(low1, part));
            if (pair) store(left_to + left->step_ + part * kTileUnits, high0.units_with(high1, part));
          }
          if constexpr (kRight) {
            store(right_to + part * kTileUnits, low0.units_with(high0, part));
            if (whole) store(right_to + right->step_ + part * kTileUnits, low1.units_with(high1, part));
          }
        }
        if constexpr (kLeft) left_to += kParts * kTileUnits;
        if constexpr (kRight) right_to += 2 * right->step_;
      }
    }
  }

  void pack_left(const float* from, int64_t columns, int64_t first, int64_t rows) {
    pack<true, false>(from, columns, first, rows, this, nullptr);
  }

  void pack_right(const float* from, int64_t columns, int64_t first, int64_t rows) {
    pack<false, true>(from, columns, first, rows, nullptr, this);
  }

  // Zeros below the last row of a right operand's depth, where no row would write them.
  void pad(int64_t depth) {
    const int64_t rest = depth % kStep;
    if (rest == 0 || rest >= kTileSide) return;
    for (int64_t strip = 0; strip < strips_; ++strip) {
      for (int part = 0; part < kParts; ++part) {
        std::fill_n(tile(strip, depth / kStep, part) + rest * kTileSide, (kTileSide - rest) * kTileSide, 0u);
      }
    }
  }

  // Strips of rows to strips of columns of the transpose, and back; `from` may be this itself.
  void transpose_tiles(const uint32_t* from, int64_t from_step, int64_t strips, int64_t first_step, int64_t steps) {
    for (int64_t strip = 0; strip < strips; ++strip) {
      for (int64_t at = first_step * kParts * kTileUnits; at < (first_step + steps) * kParts * kTileUnits;
           at += kTileUnits) {
        Vector<uint32_t> square[kTileSide];
        for (int64_t r = 0; r < kTileSide; ++r) square[r] = load(from + strip * from_step + at + r * kTileSide);
        transpose_square<1, uint32_t>(square);
        for (int64_t r = 0; r < kTileSide; ++r) {
          store(units_.get() + strip * step_ + at + r * kTileSide, square[r]);
        }
      }
    }
  }

 private:
  uint32_t* tile(int64_t strip, int64_t step, int64_t part) const {
    return units_.get() + strip * step_ + (step * kParts + part) * kTileUnits;
  }

  int64_t strips_, step_;
  Scratch<uint32_t> units_;
};
#endif
