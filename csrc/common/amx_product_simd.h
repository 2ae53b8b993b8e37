// Products in the tiles of AMX: of bfloat16, and of float32 in two or three bfloat16 parts.
// Compiled once for each instruction set by foreach_isa.h after amx_strips_simd.h, inside a namespace.
//
// A float32 is the sum of three bfloat16 of 8 bits each: the element rounded, the rest rounded, and what is left. Of
// the nine products of parts the six largest are added up in float32; the others are below its last bit. Six times the
// work of bfloat16 is still less time than float32 takes in vectors, and a tile adds 32 products before it rounds.
// Elements below about 1e-33 have fewer digits: tiles take subnormal parts for zeros. Two parts and three products keep
// 16 bits, more than TF32's 11.

#if defined(MIXER_KERNELS_ISA_AMX)
// Strips of an operand from one of them, and one of their tiles, on.
struct StripsOf {
  const uint32_t* data;
  int64_t step;  // from a strip to the next

  StripsOf from(int64_t strip, int64_t tile) const { return {data + strip * step + tile * kTileUnits, step}; }
};

// Work in pieces beside a product: while its tiles multiply, vectors have time.
class Aside {
 public:
  Aside() = default;

  // f(begin, end) for the pieces, spread over so many steps of the product.
  template <typename F>
  Aside(int64_t pieces, int64_t steps, const F& f) : pieces_(pieces), steps_(steps), f_(&f), run_(&run<F>) {}

  void step() {
    due_ += pieces_;
    if (due_ < steps_) return;
    const int64_t begin = next_;
    for (; due_ >= steps_; due_ -= steps_) ++next_;
    run_(f_, begin, next_);
  }

 private:
  template <typename F>
  static void run(const void* f, int64_t begin, int64_t end) {
    // A copy, that compilers keep in registers.
    const F here = *static_cast<const F*>(f);
    here(begin, end);
  }

  int64_t pieces_ = 0, steps_ = 1, next_ = 0, due_ = 0;
  const void* f_ = nullptr;
  void (*run_)(const void*, int64_t, int64_t) = nullptr;
};

// One or two strips of rows by one or two of columns: some steps of the depth, and perhaps its rest.
template <int kParts, int kRows, int kColumns, typename Tiles>
void multiply_strips(Tiles& tiles, StripsOf left, StripsOf right, int64_t steps, bool with_rest, bool accumulate,
                     float* out, int64_t ld_out, Aside& aside) {
  using Products = PartProducts<kParts>;
  // A copy, that compilers keep in registers.
  Aside here = aside;
  const auto each_accumulator = [&](const auto& f) {
    f(std::integral_constant<int, 0>{}, out);
    if constexpr (kColumns == 2) f(std::integral_constant<int, 1>{}, out + kTileSide);
    if constexpr (kRows == 2) f(std::integral_constant<int, 2>{}, out + kTileSide * ld_out);
    if constexpr (kRows * kColumns == 4) f(std::integral_constant<int, 3>{}, out + kTileSide * ld_out + kTileSide);
  };
  each_accumulator([&](auto tile, const float* from) {
    if (accumulate) {
      tiles.template load_tile<tile()>(from, ld_out * sizeof(float));
    } else {
      tiles.template clear<tile()>();
    }
  });
  const auto load_left = [&](int64_t tile) {
    const uint32_t* const from = left.data + tile * kTileUnits;
    tiles.template load_tile<4>(from, sizeof(uint32_t) * kTileSide);
    if constexpr (kRows == 2) tiles.template load_tile<5>(from + left.step, sizeof(uint32_t) * kTileSide);
  };
  const auto load_right = [&](int64_t tile) {
    const uint32_t* const from = right.data + tile * kTileUnits;
    tiles.template load_tile<6>(from, sizeof(uint32_t) * kTileSide);
    if constexpr (kColumns == 2) tiles.template load_tile<7>(from + right.step, sizeof(uint32_t) * kTileSide);
  };
  const auto dot = [&] {
    tiles.template dot<0, 4, 6>();
    if constexpr (kColumns == 2) tiles.template dot<1, 4, 7>();
    if constexpr (kRows == 2) tiles.template dot<2, 5, 6>();
    if constexpr (kRows * kColumns == 4) tiles.template dot<3, 5, 7>();
    if constexpr (kParts > 1) here.step();
  };
  int64_t tile = 0;
  for (; tile < steps * kParts; tile += kParts) {
#pragma GCC unroll 6
    for (int p = 0; p < Products::kCount; ++p) {
      if (p == 0 || Products::kLeft[p] != Products::kLeft[p - 1]) load_left(tile + Products::kLeft[p]);
      if (p == 0 || Products::kRight[p] != Products::kRight[p - 1]) load_right(tile + Products::kRight[p]);
      dot();
    }
  }
  if (with_rest) {
    load_left(tile);
    load_right(tile);
    dot();
  }
  aside = here;
  each_accumulator([&](auto tile, float* to) { tiles.template store_tile<tile()>(to, ld_out * sizeof(float)); });
}

template <int kParts, typename Tiles>
void multiply_operands(int64_t rows, int64_t columns, int64_t steps, bool with_rest, StripsOf left, StripsOf right,
                       bool accumulate, float* out, int64_t ld_out, Aside& aside) {
  // Two strips of columns, as deep as the first-level cache holds them while all rows pass.
  constexpr int64_t kDepth = 12 / kParts;
  const int64_t pieces = std::max<int64_t>(1, (steps + kDepth - 1) / kDepth);
  Tiles tiles;
  for (int64_t column = 0; column < columns; column += 2 * kTileSide) {
    const bool two_columns = column + kTileSide < columns;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t begin = piece * steps / pieces, end = (piece + 1) * steps / pieces;
      const StripsOf right_here = right.from(column / kTileSide, begin * kParts);
      for (int64_t row = 0; row < rows; row += 2 * kTileSide) {
        const bool two_rows = row + kTileSide < rows;
        const auto multiply = two_rows ? (two_columns ? &multiply_strips<kParts, 2, 2, Tiles>  //
                                                      : &multiply_strips<kParts, 2, 1, Tiles>)
                                       : (two_columns ? &multiply_strips<kParts, 1, 2, Tiles>  //
                                                      : &multiply_strips<kParts, 1, 1, Tiles>);
        multiply(tiles, left.from(row / kTileSide, begin * kParts), right_here, end - begin,
                 with_rest && piece + 1 == pieces, accumulate || piece > 0, out + row * ld_out + column, ld_out, aside);
      }
    }
  }
}

// As VectorProduct.
template <typename scalar_t, int kFloatParts>
struct PartsProduct {
  static constexpr int kParts = std::is_same_v<scalar_t, c10::BFloat16> ? 1 : kFloatParts;
  using acc_t = float;
  using LeftRows = StripsOf;

  // Few columns do not pay for the packing of float32 weights.
  static bool pays(int64_t columns) { return kParts == 1 || columns >= 512; }

  static constexpr int64_t kColumns = 128 / sizeof(scalar_t);

  static constexpr int64_t kTileRows = 2 * kTileSide;

  static constexpr int64_t kBlocks = kParts == 1 ? 1 : 2;

  class Left {
   public:
    Left(const scalar_t* matrix, int64_t rows, int64_t columns) : strips_(rows, columns) {
      pack_blocks(matrix, rows, columns, [&](const RowBlock<float>& from, int64_t width, int64_t first) {
        strips_.packing_left(from, width, first, std::min(kStep, whole_strips(rows) - first)).pack();
      });
    }

    static Left transposed(const scalar_t* matrix, int64_t rows, int64_t columns) {
      Left left(rows, columns);
      Strips<kParts>& strips = left.strips_;
      pack_blocks(matrix, columns, rows, [&](const RowBlock<float>& from, int64_t width, int64_t first) {
        strips.pack_turned_left(from, width, first, kStep);
        strips.transpose_tiles(strips.strip(0), strips.step(), width / kTileSide,
                               strips.depth().tiles_before(first / kStep),
                               strips.depth().tiles_before(first / kStep + 1));
      });
      return left;
    }

    LeftRows from(int64_t row) const { return {strips_.strip(row / kTileSide), strips_.step()}; }

   private:
    Left(int64_t rows, int64_t columns) : strips_(rows, columns) {}

    // Calls f(rows, their columns, first row) for blocks of kStep rows, with zeros around the matrix.
    template <typename F>
    static void pack_blocks(const scalar_t* matrix, int64_t rows, int64_t columns, const F& f) {
      const int64_t width = whole_vectors<float>(columns);
      at::parallel_for(0, depth_steps(rows), rows_per_task(kStep * columns), [&](int64_t begin, int64_t end) {
        Scratch<float> block(kStep * width);
        std::fill_n(block.get(), kStep * width, 0.0f);
        for (int64_t first = begin * kStep; first < end * kStep; first += kStep) {
          const int64_t here = std::min(kStep, rows - first);
          for (int64_t r = 0; r < here; ++r) {
            load_row(matrix + (first + r) * columns, 1, columns, block.get() + r * width);
          }
          std::fill_n(block.get() + here * width, (kStep - here) * width, 0.0f);
          f(RowBlock<float>{block.get(), width}, width, first);
        }
      });
    }

    Strips<kParts> strips_;
  };

  class TileMatrix;

  class Right {
   public:
    Right(int64_t depth, int64_t columns) : strips_(columns, depth) { strips_.pad(depth); }

    template <typename From>
    void pack(const From& from, int64_t columns, int64_t first, int64_t rows) {
      strips_.packing_right(from, columns, first, rows).pack();
    }

    static int64_t pieces(int64_t columns) { return Strips<kParts>::pieces(columns); }

    template <typename From>
    void pack_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t begin, int64_t end) {
      strips_.packing_right(from, columns, first, rows).pack_pieces(begin, end);
    }

    void set_transposed(const LeftRows& from, int64_t rows, int64_t columns) {
      strips_.transpose_tiles(from.data, from.step, (rows + kTileSide - 1) / kTileSide, 0,
                              depth_steps(columns) * kParts);
    }

    StripsOf strips() const { return {strips_.strip(0), strips_.step()}; }
    const Depth<kParts>& depth() const { return strips_.depth(); }

   private:
    friend class TileMatrix;
    Strips<kParts> strips_;
  };

  class TileRows {
   public:
    TileRows(int64_t rows, int64_t columns) : strips_(rows, columns) {}

    template <typename From>
    void store(const From& from, int64_t columns, int64_t first, int64_t rows) {
      strips_.packing_left(from, columns, first, rows).pack();
    }

    template <typename From>
    void store_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t begin, int64_t end) {
      strips_.packing_left(from, columns, first, rows).pack_pieces(begin, end);
    }

    LeftRows left() const { return {strips_.strip(0), strips_.step()}; }

   private:
    Strips<kParts> strips_;
  };

  class TileMatrix {
   public:
    TileMatrix(int64_t rows, int64_t columns) : right_(rows, columns), left_(rows, columns) {}

    template <typename From>
    void store(const From& from, int64_t columns, int64_t first, int64_t rows) {
      packing(from, columns, first, rows).pack();
    }

    static int64_t pieces(int64_t columns) { return Strips<kParts>::pieces(columns); }

    template <typename From>
    void store_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t begin, int64_t end) {
      packing(from, columns, first, rows).pack_pieces(begin, end);
    }

    const Right& right() const { return right_; }
    LeftRows left() const { return {left_.strip(0), left_.step()}; }

   private:
    template <typename From>
    typename Strips<kParts>::template Packing<true, true, From> packing(const From& from, int64_t columns,
                                                                        int64_t first, int64_t rows) {
      return {from, columns, first, rows, &left_, &right_.strips_};
    }

    Right right_;
    Strips<kParts> left_;
  };

  class Session {
   public:
    Session() {
      if (has_amx()) tiles_.emplace();
    }

    void multiply(int64_t rows, int64_t columns, int64_t depth, const LeftRows& left, const Right& right,
                  bool accumulate, acc_t* out, int64_t ld_out) const {
      Aside none;
      multiply_beside(rows, columns, depth, left, right, accumulate, out, ld_out, none);
    }

    template <typename F>
    void multiply(int64_t rows, int64_t columns, int64_t depth, const LeftRows& left, const Right& right,
                  bool accumulate, acc_t* out, int64_t ld_out, int64_t pieces, const F& f) const {
      const auto pairs = [](int64_t size) { return (size + 2 * kTileSide - 1) / (2 * kTileSide); };
      const int64_t steps = pairs(rows) * pairs(columns) * right.depth().products(depth);
      // A product leaves vectors little time in bfloat16, or if there is more to do than to multiply.
      if (kBlocks == 1 || 2 * pieces > steps) {
        f(0, pieces);
        return multiply(rows, columns, depth, left, right, accumulate, out, ld_out);
      }
      Aside aside(pieces, steps, f);
      multiply_beside(rows, columns, depth, left, right, accumulate, out, ld_out, aside);
    }

   private:
    void multiply_beside(int64_t rows, int64_t columns, int64_t depth, const LeftRows& left, const Right& right,
                         bool accumulate, acc_t* out, int64_t ld_out, Aside& aside) const {
      const auto multiply_here =
          tiles_ ? &multiply_operands<kParts, AmxTiles> : &multiply_operands<kParts, EmulatedAmxTiles>;
      const Depth<kParts>& cut = right.depth();
      const int64_t steps = depth_steps(depth);
      multiply_here(rows, columns, std::min(steps, cut.steps), steps > cut.steps, left, right.strips(), accumulate, out,
                    ld_out, aside);
    }

    std::optional<AmxTiles::Session> tiles_;  // the CPU's own
  };
};

template <typename scalar_t, int kFloatParts = 3>
using AmxProduct = std::conditional_t<std::is_same_v<scalar_t, float> || std::is_same_v<scalar_t, c10::BFloat16>,
                                      PartsProduct<scalar_t, kFloatParts>, VectorProduct<scalar_t>>;
#else
template <typename scalar_t, int kFloatParts = 3>
using AmxProduct = VectorProduct<scalar_t>;
#endif
