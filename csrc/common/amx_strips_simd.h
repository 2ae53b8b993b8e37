// Operands of products in the tiles of AMX: bfloat16, and float32 as two or three bfloat16 parts.
// Compiled once for each instruction set by foreach_isa.h after amx_tiles_simd.h, inside a namespace.
//
// Operands lie in strips: 16 rows of a left one, 16 columns of a right one, and of those tile after tile along the
// depth, 32 elements deep, for each step the tiles of all parts. The last few elements lie in a single tile, if what
// each product of parts takes of them fits into it side by side: 196 tokens are six steps and one tile.

#if defined(MIXER_KERNELS_ISA_AMX)
using Bits = Vector<uint32_t>;

constexpr int64_t kStep = 2 * kTileSide;  // of the depth

inline int64_t depth_steps(int64_t depth) { return (depth + kStep - 1) / kStep; }

// The products of parts that are added up, each with a part of the one before.
template <int kParts>
struct PartProducts;

template <>
struct PartProducts<1> {
  static constexpr int kCount = 1, kLeft[] = {0}, kRight[] = {0};
};

template <>
struct PartProducts<2> {
  static constexpr int kCount = 3, kLeft[] = {1, 0, 0}, kRight[] = {0, 0, 1};
};

template <>
struct PartProducts<3> {
  static constexpr int kCount = 6, kLeft[] = {2, 1, 1, 0, 0, 0}, kRight[] = {0, 0, 1, 1, 2, 0};
};

// How the depth of an operand is cut.
template <int kParts>
struct Depth {
  static constexpr int kProducts = PartProducts<kParts>::kCount;

  int64_t steps;
  int64_t rest;  // elements behind them, in one tile

  explicit Depth(int64_t depth) : steps(depth / kStep), rest(depth % kStep) {
    if (rest > 0 && (kParts == 1 || kProducts * rest_units() > kTileSide)) ++steps, rest = 0;
  }

  // A unit holds two elements, so many apart.
  int64_t rest_units() const { return (rest + 1) / 2; }

  // Products of tiles along a depth that is no longer.
  int64_t products(int64_t depth) const {
    return std::min(depth_steps(depth), steps) * kProducts + (depth_steps(depth) > steps ? 1 : 0);
  }

  // Tiles before a step, or before the end.
  int64_t tiles_before(int64_t step) const { return std::min(step, steps) * kParts + (step > steps ? 1 : 0); }
};

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
    // Of three parts, all of the rest, but for bits below the smallest normal number.
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
  using Products = PartProducts<kParts>;

  Strips(int64_t width, int64_t depth)
      : depth_(depth),
        strips_((width + kTileSide - 1) / kTileSide),
        step_(depth_.tiles_before(depth_steps(depth)) * kTileUnits),
        units_(strips_ * step_) {}

  const Depth<kParts>& depth() const { return depth_; }
  const uint32_t* strip(int64_t index) const { return units_.get() + index * step_; }
  // From a strip to the next.
  int64_t step() const { return step_; }

  // Rows [first, first + rows) of a left operand, of a right one, or of both in one: from(r, c) is a vector of row
  // first + r, from column c on. first is a multiple of kStep, there are up to kStep rows, columns are whole vectors.
  template <bool kLeft, bool kRight, typename From>
  class Packing {
   public:
    Packing(const From& from, int64_t columns, int64_t first, int64_t rows, Strips* left, Strips* right)
        : from_(from),
          columns_(columns),
          whole_columns_(kLeft ? std::min(columns, left->depth_.steps * kStep) : columns),
          first_(first),
          rows_(rows),
          has_whole_rows_(kRight && first < right->depth_.steps * kStep),
          left_(left),
          right_(right) {}

    void pack() const { pack_pieces(0, pieces(columns_)); }

    // Pieces [begin, end) of pieces(columns).
    void pack_pieces(int64_t begin, int64_t end) const {
      const int64_t pairs = pieces(columns_) - 1;
      for (int64_t at = begin / kTileSide * kTileSide; at < std::min(end, pairs); at += kTileSide) {
        const int64_t c = at / kTileSide * kStep;
        if (c >= whole_columns_) break;
        const int64_t last = std::min({end - at, rows_, kTileSide});
        for (int64_t r = std::max<int64_t>(begin - at, 0); r < last; ++r) pack_pairs(r, c);
      }
      if (end > pairs) pack_rest();
    }

   private:
    // Rows r and r + kTileSide, of the two tiles from column c on.
    void pack_pairs(int64_t r, int64_t c) const {
      const Vector<float> zero{};
      const bool whole = c + kTileSide < columns_, pair = r + kTileSide < rows_;
      const Split<kParts> low0(from_(r, c));
      const Split<kParts> low1(whole ? from_(r, c + kTileSide) : zero);
      const Split<kParts> high0(pair ? from_(r + kTileSide, c) : zero);
      const Split<kParts> high1(pair && whole ? from_(r + kTileSide, c + kTileSide) : zero);
      for (int part = 0; part < kParts; ++part) {
        if constexpr (kLeft) {
          uint32_t* const to = left_->tile(first_ / kTileSide, c / kStep * kParts + part) + r * kTileSide;
          store(to, low0.units_with(low1, part));
          if (pair) store(to + left_->step_, high0.units_with(high1, part));
        }
        if (has_whole_rows_) {
          uint32_t* const to = right_->tile(c / kTileSide, first_ / kStep * kParts + part) + r * kTileSide;
          store(to, low0.units_with(high0, part));
          if (whole) store(to + right_->step_, low1.units_with(high1, part));
        }
      }
    }

    void pack_rest() const {
      if constexpr (kLeft) {
        if (whole_columns_ < columns_) left_->pack_left_rest(from_, first_, rows_);
      }
      if constexpr (kRight) {
        if (!has_whole_rows_) right_->pack_right_rest(from_, columns_, Products::kRight);
      }
    }

    const From& from_;
    const int64_t columns_, whole_columns_, first_, rows_;
    const bool has_whole_rows_;  // of a right operand
    Strips *const left_, *const right_;
  };

  // Of a packing: the rows of tiles, and in the end the rest of the depth.
  static int64_t pieces(int64_t columns) { return depth_steps(columns) * kTileSide + 1; }

  template <typename From>
  Packing<true, false, From> packing_left(const From& from, int64_t columns, int64_t first, int64_t rows) {
    return {from, columns, first, rows, this, nullptr};
  }

  template <typename From>
  Packing<false, true, From> packing_right(const From& from, int64_t columns, int64_t first, int64_t rows) {
    return {from, columns, first, rows, nullptr, this};
  }

  // As a right one, to become a left one by transpose_tiles().
  template <typename From>
  void pack_turned_left(const From& from, int64_t columns, int64_t first, int64_t rows) {
    if (first < depth_.steps * kStep) return packing_right(from, columns, first, rows).pack();
    pack_right_rest(from, columns, Products::kLeft);
  }

  // Zeros below the last row of a right operand's depth, where no row would write them.
  void pad(int64_t depth) {
    const int64_t rest = depth % kStep;
    if (depth_.rest != 0 || rest == 0 || rest >= kTileSide) return;
    for (int64_t strip = 0; strip < strips_; ++strip) {
      for (int part = 0; part < kParts; ++part) {
        std::fill_n(tile(strip, depth / kStep * kParts + part) + rest * kTileSide, (kTileSide - rest) * kTileSide, 0u);
      }
    }
  }

  // Strips of rows to strips of columns of the transpose, and back, between two tiles of each; `from` may be this
  // itself.
  void transpose_tiles(const uint32_t* from, int64_t from_step, int64_t strips, int64_t first_tile, int64_t last_tile) {
    for (int64_t strip = 0; strip < strips; ++strip) {
      for (int64_t at = first_tile * kTileUnits; at < last_tile * kTileUnits; at += kTileUnits) {
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
  uint32_t* tile(int64_t strip, int64_t index) const { return units_.get() + strip * step_ + index * kTileUnits; }

  // Of each row the rest of the depth: for every product of parts its units, one after the other.
  template <typename From>
  void pack_left_rest(const From& from, int64_t first, int64_t rows) {
    const int64_t units = depth_.rest_units();
    for (int64_t r = 0; r < rows; ++r) {
      float elements[2 * kTileSide] = {};
      store(elements, from(r, depth_.steps * kStep));
      const Split<kParts> low(load(elements)), high(load(elements + units));
      // Behind the units of each are some that are none, until the next ones overwrite them.
      uint32_t all[2 * kTileSide];
      uint32_t* end = all;
      for (const int part : Products::kLeft) {
        store(end, low.units_with(high, part));
        end += units;
      }
      std::fill(end, all + kTileSide, 0u);
      const int64_t row = first + r;
      store(tile(row / kTileSide, depth_.steps * kParts) + row % kTileSide * kTileSide, load(all));
    }
  }

  // The same of each column; which part each product takes is the operand's own.
  template <typename From>
  void pack_right_rest(const From& from, int64_t columns, const int (&parts)[Products::kCount]) {
    const int64_t units = depth_.rest_units();
    for (int64_t c = 0; c < columns; c += kTileSide) {
      uint32_t* const to = tile(c / kTileSide, depth_.steps * kParts);
      for (int64_t unit = 0; unit < units; ++unit) {
        const Split<kParts> low(from(unit, c));
        const Split<kParts> high(unit + units < depth_.rest ? from(unit + units, c) : Vector<float>{});
        for (int p = 0; p < Products::kCount; ++p) {
          store(to + (p * units + unit) * kTileSide, low.units_with(high, parts[p]));
        }
      }
      std::fill(to + Products::kCount * units * kTileSide, to + kTileUnits, 0u);
    }
  }

  Depth<kParts> depth_;
  int64_t strips_, step_;
  Scratch<uint32_t> units_;
};
#endif
