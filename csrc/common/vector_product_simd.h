// Products of a weight matrix with a panel of columns: out (rows, columns) = a (rows, depth) * panel (depth, columns).
// Compiled once for each instruction set by foreach_isa.h after units_simd.h and channel_tiles_simd.h, inside a
// namespace.
//
// `a` is row-major and read in place, one broadcast a row and step: no packing. The panel is packed by whoever makes
// it: row-major for float and double; for bfloat16 a unit holds two neighbouring rows of a column, as the dot product
// of pairs wants them.

// 24 accumulators of the 32 registers of AVX-512, 12 of the 16 elsewhere.
constexpr int kBlockRows = 6;
constexpr int kBlockVectors = kVectorBytes == 64 ? 4 : 2;
// Of the depth: beside 12 products a step, the loop's own instructions count.
constexpr int kStepsAtOnce = kVectorBytes == 64 ? 1 : 4;

template <typename operand_t, int kRows, int kVectors>
void multiply_block(const operand_t* a, int64_t lda, const unit_type<operand_t>* panel, int64_t ld_panel, int64_t steps,
                    bool accumulate, acc_type<operand_t>* out, int64_t ld_out) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  Vector<acc_t> acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = Vector<acc_t>{};
  }
#pragma GCC unroll kStepsAtOnce
  for (int64_t step = 0; step < steps; ++step) {
    UnitVector<operand_t> column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = load(panel + step * ld_panel + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const UnitVector<operand_t> row = broadcast_unit(a + r * lda + step * kUnitDepth<operand_t>);
      for (int v = 0; v < kVectors; ++v) acc[r][v] = multiply_add<operand_t>(acc[r][v], row, column[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      acc_t* const to = out + r * ld_out + v * lanes;
      store(to, accumulate ? load(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <typename operand_t>
using MultiplyBlock = decltype(&multiply_block<operand_t, 1, 1>);

template <typename operand_t, int... kIndex>
MultiplyBlock<operand_t> multiply_block_of(int64_t rows, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr MultiplyBlock<operand_t> kAll[] = {
      &multiply_block<operand_t, kIndex / kBlockVectors + 1, kIndex % kBlockVectors + 1>...};
  return kAll[(rows - 1) * kBlockVectors + vectors - 1];
}

// The product, added to `out` if `accumulate`. columns is a multiple of the accumulator's lanes; where a unit holds two
// rows and depth is odd, `a` has a column of zeros behind its last one.
template <typename operand_t>
void multiply_panel(int64_t rows, int64_t columns, int64_t depth, const operand_t* a, int64_t lda,
                    const unit_type<operand_t>* panel, int64_t ld_panel, bool accumulate, acc_type<operand_t>* out,
                    int64_t ld_out) {
  constexpr auto all = std::make_integer_sequence<int, kBlockRows * kBlockVectors>{};
  constexpr int64_t lanes = kLanes<acc_type<operand_t>>;
  // Blocks of columns as even as they can be: one that is a single vector wide would wait for its own accumulators.
  const int64_t vectors = columns / lanes, blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
  // A long sum is made of short ones: one running sum would lose about a digit of float32.
  const int64_t steps = units<operand_t>(depth), parts = std::max<int64_t>(1, (steps + kLongestSum - 1) / kLongestSum);
  const auto begin_of = [&](int64_t part) {
    return part == parts ? steps : part * steps / parts / kStepsAtOnce * kStepsAtOnce;
  };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * vectors / blocks, last = (block + 1) * vectors / blocks;
    const int64_t column = first * lanes;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = begin_of(part), end = begin_of(part + 1);
      // This piece of the panel stays in the first-level cache.
      for (int64_t row = 0; row < rows; row += kBlockRows) {
        const int64_t block_rows = std::min<int64_t>(kBlockRows, rows - row);
        multiply_block_of<operand_t>(block_rows, last - first, all)(
            a + row * lda + begin * kUnitDepth<operand_t>, lda, panel + begin * ld_panel + column, ld_panel,
            end - begin, accumulate || part > 0, out + row * ld_out + column, ld_out);
      }
    }
  }
}

// Rows [first, first + rows) of a panel: from(r, c) is a vector of row first + r, from column c on. Where a unit holds
// two rows, `first` is even, and an odd last row is paired with zeros.
template <typename operand_t, typename From>
void pack_rows(const From& from, int64_t first, int64_t rows, int64_t columns, unit_type<operand_t>* panel,
               int64_t ld_panel) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t depth = kUnitDepth<operand_t>;
  for (int64_t row = 0; row < rows; row += depth) {
    unit_type<operand_t>* const to = panel + (first + row) / depth * ld_panel;
    for (int64_t i = 0; i < columns; i += kLanes<acc_t>) {
      if constexpr (depth == 2) {
        store(to + i, round_to_units<operand_t>(from(row, i), row + 1 < rows ? from(row + 1, i) : Vector<acc_t>{}));
      } else {
        store(to + i, from(row, i));
      }
    }
  }
}

// A matrix of parameters, or its transpose, as the left operand of products: itself where it can be, else a copy.
template <typename scalar_t>
class LeftMatrix {
 public:
  using operand_t = operand_type<scalar_t>;

  LeftMatrix(const scalar_t* matrix, int64_t rows, int64_t columns) : data_(nullptr), ld_(columns) {
    constexpr bool kSame = std::is_same_v<scalar_t, operand_t>;
    if constexpr (kSame) data_ = matrix;
    if (kSame && columns % kUnitDepth<operand_t> == 0) return;
    allocate(rows, columns);
    at::parallel_for(0, rows, rows_per_task(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        operand_t* const to = copy_.get() + row * ld_;
        for (int64_t i = 0; i < columns; ++i) to[i] = static_cast<operand_t>(matrix[row * columns + i]);
        std::fill(to + columns, to + ld_, operand_t(0));
      }
    });
  }

  // The transpose of a matrix (columns, rows).
  static LeftMatrix transposed(const scalar_t* matrix, int64_t rows, int64_t columns) {
    // Elements travel as plain bits.
    using bits_t = std::conditional_t<std::is_same_v<operand_t, c10::BFloat16>, uint16_t, operand_t>;
    LeftMatrix operand;
    operand.allocate(rows, columns);
    const LeftMatrix source(matrix, columns, rows);
    at::parallel_for(0, rows, rows_per_task(columns), [&](int64_t begin, int64_t end) {
      transpose(reinterpret_cast<const bits_t*>(source.data_) + begin, source.ld_, columns, end - begin,
                reinterpret_cast<bits_t*>(operand.copy_.get()) + begin * operand.ld_, operand.ld_);
    });
    return operand;
  }

  const operand_t* row(int64_t index) const { return data_ + index * ld_; }
  int64_t ld() const { return ld_; }

 private:
  LeftMatrix() = default;

  void allocate(int64_t rows, int64_t columns) {
    constexpr int64_t lanes = kVectorBytes / sizeof(operand_t);
    ld_ = (columns + lanes - 1) / lanes * lanes;
    copy_ = Scratch<operand_t>(rows * ld_);
    data_ = copy_.get();
  }

  const operand_t* data_ = nullptr;
  int64_t ld_ = 0;
  Scratch<operand_t> copy_;
};

// How matrices are multiplied, and what their operands look like: by vectors here, by tiles in amx_product_simd.h,
// under the same names.
template <typename scalar_t>
struct VectorProduct {
  using acc_t = acc_type<scalar_t>;
  using operand_t = operand_type<scalar_t>;
  using unit_t = unit_type<operand_t>;

  // Whether a call with so many columns, of all images, had better be made with this product than with VectorProduct.
  static bool pays(int64_t) { return true; }

  // Of a tile in forward: wide ones read the weights less often, narrow ones leave the caches to them.
  static constexpr int64_t kColumns = 64;

  // Rows of a product that are made at a time: whole blocks of registers.
  static constexpr int64_t kTileRows = 6 * kBlockRows;

  // Blocks of rows of products at a time: a second one where the first is worked on while the second is made.
  static constexpr int64_t kBlocks = 1;

  struct LeftRows {
    const operand_t* data;
    int64_t ld;
  };

  // A matrix of parameters (rows, columns), or its transpose.
  class Left {
   public:
    Left(const scalar_t* matrix, int64_t rows, int64_t columns) : matrix_(matrix, rows, columns) {}

    static Left transposed(const scalar_t* matrix, int64_t rows, int64_t columns) {
      return Left(LeftMatrix<scalar_t>::transposed(matrix, rows, columns));
    }

    LeftRows from(int64_t row) const { return {matrix_.row(row), matrix_.ld()}; }

   private:
    explicit Left(LeftMatrix<scalar_t>&& matrix) : matrix_(std::move(matrix)) {}

    LeftMatrix<scalar_t> matrix_;
  };

  // A matrix (depth, columns); room for as many columns as it may ever have.
  class Right {
   public:
    Right(int64_t depth, int64_t columns) : panel_(units<operand_t>(depth) * columns) {}

    // Rows [first, first + rows): from(r, c) is a vector of row first + r, from column c on. first is a multiple of
    // kTileRows.
    template <typename From>
    void pack(const From& from, int64_t columns, int64_t first, int64_t rows) {
      pack_rows<operand_t>(from, first, rows, columns, panel_.get(), columns);
    }

    // The same for the rows of one block in pieces(columns).
    static int64_t pieces(int64_t) { return 1; }

    template <typename From>
    void pack_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t, int64_t) {
      pack(from, columns, first, rows);
    }

    // The transpose of a matrix (rows, columns); its own columns are whole vectors.
    void set_transposed(const LeftRows& from, int64_t rows, int64_t columns) {
      transpose(reinterpret_cast<const unit_t*>(from.data), units<operand_t>(columns), rows, units<operand_t>(columns),
                panel_.get(), whole_vectors<acc_t>(rows));
    }

    const unit_t* data() const { return panel_.get(); }

   private:
    Scratch<unit_t> panel_;
  };

  // A matrix (rows, columns of a tile) as the left operand of one product, or transposed as the right one.
  class TileRows {
   public:
    TileRows(int64_t rows, int64_t columns) : rows_(rows * columns) {}

    template <typename From>
    void store(const From& from, int64_t columns, int64_t first, int64_t rows) {
      ld_ = columns;
      for (int64_t r = 0; r < rows; ++r) {
        operand_t* const to = rows_.get() + (first + r) * columns;
        for (int64_t i = 0; i < columns; i += kLanes<acc_t>) store_acc(to + i, from(r, i));
      }
    }

    template <typename From>
    void store_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t, int64_t) {
      store(from, columns, first, rows);
    }

    LeftRows left() const { return {rows_.get(), ld_}; }

   private:
    Scratch<operand_t> rows_;
    int64_t ld_ = 0;
  };

  // The same, and the right operand of another product as well.
  class TileMatrix {
   public:
    TileMatrix(int64_t rows, int64_t columns) : right_(rows, columns), rows_(kSame ? 0 : rows, columns) {}

    template <typename From>
    void store(const From& from, int64_t columns, int64_t first, int64_t rows) {
      right_.pack(from, columns, first, rows);
      if constexpr (!kSame) rows_.store(from, columns, first, rows);
      ld_ = columns;
    }

    static int64_t pieces(int64_t) { return 1; }

    template <typename From>
    void store_pieces(const From& from, int64_t columns, int64_t first, int64_t rows, int64_t, int64_t) {
      store(from, columns, first, rows);
    }

    const Right& right() const { return right_; }

    LeftRows left() const {
      if constexpr (kSame) {
        return {right_.data(), ld_};
      } else {
        return rows_.left();
      }
    }

   private:
    static constexpr bool kSame = std::is_same_v<unit_t, operand_t>;
    Right right_;
    TileRows rows_;
    int64_t ld_ = 0;
  };

  // What a thread holds while it multiplies.
  struct Session {
    // out (rows, columns) = left * right, added to `out` if `accumulate`. columns are whole vectors; `out` has room for
    // rows up to a multiple of kStripRows.
    static void multiply(int64_t rows, int64_t columns, int64_t depth, const LeftRows& left, const Right& right,
                         bool accumulate, acc_t* out, int64_t ld_out) {
      multiply_panel<operand_t>(rows, columns, depth, left.data, left.ld, right.data(), columns, accumulate, out,
                                ld_out);
    }

    // Calls f(begin, end) for pieces [0, pieces) too: with kBlocks = 1 before the product, else in the meantime.
    template <typename F>
    static void multiply(int64_t rows, int64_t columns, int64_t depth, const LeftRows& left, const Right& right,
                         bool accumulate, acc_t* out, int64_t ld_out, int64_t pieces, const F& f) {
      f(0, pieces);
      multiply(rows, columns, depth, left, right, accumulate, out, ld_out);
    }
  };
};
