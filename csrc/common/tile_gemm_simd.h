// Products of a weight matrix with a panel of columns: out (rows, columns) = a (rows, depth) * panel (depth, columns).
// Compiled once for each instruction set by foreach_isa.h after vector_simd.h, inside a namespace.
//
// `a` is row-major and read in place, one broadcast a row and step: no packing. The panel is packed by whoever makes
// it: row-major for float and double; for bfloat16 a unit holds two neighbouring rows of a column, as the dot product
// of pairs wants them. Half, and bfloat16 where there is no such instruction, are multiplied as float.

template <typename scalar_t>
using operand_type =
    std::conditional_t<std::is_same_v<scalar_t, c10::Half> || (std::is_same_v<scalar_t, c10::BFloat16> && !kHasBf16Dot),
                       float, scalar_t>;

// What a panel is made of, and how many rows of the depth one unit holds.
template <typename operand_t>
using unit_type = std::conditional_t<std::is_same_v<operand_t, c10::BFloat16>, uint32_t, operand_t>;
template <typename operand_t>
constexpr int64_t kUnitDepth = sizeof(unit_type<operand_t>) / sizeof(operand_t);

template <typename operand_t>
constexpr int64_t units(int64_t depth) {
  return (depth + kUnitDepth<operand_t> - 1) / kUnitDepth<operand_t>;
}

// 24 accumulators of the 32 registers of AVX-512, 12 of the 16 elsewhere.
constexpr int kBlockRows = 6;
constexpr int kBlockVectors = kVectorBytes == 64 ? 4 : 2;
constexpr int64_t kLongestSum = 128;  // units of the depth

template <typename operand_t>
using UnitVector = Vector<unit_type<operand_t>>;

template <typename operand_t>
inline UnitVector<operand_t> broadcast_unit(const operand_t* from) {
  unit_type<operand_t> unit;
  std::memcpy(&unit, from, sizeof(unit));
  return broadcast(unit);
}

// acc + a * b; of units of two, both products.
template <typename operand_t>
inline Vector<acc_type<operand_t>> multiply_add(Vector<acc_type<operand_t>> acc, UnitVector<operand_t> a,
                                                UnitVector<operand_t> b) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<operand_t, c10::BFloat16>) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  } else
#endif
  {
    return acc + a * b;
  }
}

template <typename operand_t, int kRows, int kVectors>
void multiply_block(const operand_t* a, int64_t lda, const unit_type<operand_t>* panel, int64_t ld_panel, int64_t steps,
                    bool accumulate, acc_type<operand_t>* out, int64_t ld_out) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  Vector<acc_t> acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = Vector<acc_t>{};
  }
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
// rows and depth is odd, `a` has a column of zeros behind its last one. brgemm: PyTorch's, for AMX.
template <typename operand_t>
void multiply(bool brgemm, int64_t rows, int64_t columns, int64_t depth, const operand_t* a, int64_t lda,
              const unit_type<operand_t>* panel, int64_t ld_panel, bool accumulate, acc_type<operand_t>* out,
              int64_t ld_out) {
  if constexpr (std::is_same_v<operand_t, c10::BFloat16>) {
    if (brgemm) {
      at::native::cpublas::brgemm(rows, columns, 2 * units<operand_t>(depth), lda, ld_panel, ld_out, accumulate, a,
                                  reinterpret_cast<const c10::BFloat16*>(panel), out);
      return;
    }
  }
  constexpr auto all = std::make_integer_sequence<int, kBlockRows * kBlockVectors>{};
  constexpr int64_t lanes = kLanes<acc_type<operand_t>>;
  // Blocks of columns as even as they can be: one that is a single vector wide would wait for its own accumulators.
  const int64_t vectors = columns / lanes, blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
  // A long sum is made of short ones: one running sum would lose about a digit of float32.
  const int64_t steps = units<operand_t>(depth), parts = std::max<int64_t>(1, (steps + kLongestSum - 1) / kLongestSum);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * vectors / blocks, last = (block + 1) * vectors / blocks;
    const int64_t column = first * lanes;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = part * steps / parts, end = (part + 1) * steps / parts;
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

// Units of the rounded elements of two rows.
template <typename operand_t>
inline UnitVector<operand_t> round_to_units(Vector<acc_type<operand_t>> low, Vector<acc_type<operand_t>> high) {
#if defined(__x86_64__)
  if constexpr (kHasBf16Dot) {
    typedef uint16_t words __attribute__((vector_size(64)));
    const words both = (words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (UnitVector<operand_t>)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                                          7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                                          15, 31);
  }
#endif
  operand_t rounded[2 * kLanes<float>];
  store_acc(rounded, low);
  store_acc(rounded + kLanes<float>, high);
  return load_bits(rounded) | load_bits(rounded + kLanes<float>) << 16;
}

// Rows [first, first + rows) of a panel from rows of accumulators. Where a unit holds two rows, `first` is even, and an
// odd last row is paired with zeros.
template <typename operand_t>
void pack_rows(const acc_type<operand_t>* from, int64_t ld_from, int64_t first, int64_t rows, int64_t columns,
               unit_type<operand_t>* panel, int64_t ld_panel) {
  if constexpr (kUnitDepth<operand_t> == 2) {
    for (int64_t row = 0; row < rows; row += 2) {
      uint32_t* to = panel + (first + row) / 2 * ld_panel;
      const float* low = from + row * ld_from;
      for (int64_t i = 0; i < columns; i += kLanes<float>) {
        const Vector<float> high = row + 1 < rows ? load(low + ld_from + i) : Vector<float>{};
        store(to + i, round_to_units<operand_t>(load(low + i), high));
      }
    }
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(from + row * ld_from, columns, panel + (first + row) * ld_panel);
    }
  }
}

// One half of an exchange between two rows of a square: where bit kStep of the column is set in one, and clear in the
// other, elements change places.
template <int kStep, bool kHigh, typename T, int... kColumn>
inline Vector<T> exchange(Vector<T> a, Vector<T> b, std::integer_sequence<int, kColumn...>) {
  constexpr int lanes = kLanes<T>;
  return __builtin_shufflevector(a, b,
                                 (kHigh ? (kColumn & kStep ? lanes + kColumn : kColumn + kStep)
                                        : (kColumn & kStep ? lanes + kColumn - kStep : kColumn))...);
}

template <int kStep, typename T>
inline void transpose_square(Vector<T>* rows) {
  constexpr int lanes = kLanes<T>;
  constexpr auto columns = std::make_integer_sequence<int, lanes>{};
  if constexpr (kStep < lanes) {
    for (int r = 0; r < lanes; ++r) {
      if (r & kStep) continue;
      const Vector<T> low = exchange<kStep, false, T>(rows[r], rows[r + kStep], columns);
      rows[r + kStep] = exchange<kStep, true, T>(rows[r], rows[r + kStep], columns);
      rows[r] = low;
    }
    transpose_square<2 * kStep, T>(rows);
  }
}

// to (columns, ld_to) = the transpose of from (rows, columns), zeros behind its rows; ld_to is whole vectors.
template <typename T>
void transpose(const T* from, int64_t ld_from, int64_t rows, int64_t columns, T* to, int64_t ld_to) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t row = 0; row < ld_to; row += lanes) {
    int64_t column = 0;
    for (; column + lanes <= columns; column += lanes) {
      Vector<T> square[lanes];
      for (int64_t r = 0; r < lanes; ++r) {
        square[r] = row + r < rows ? load(from + (row + r) * ld_from + column) : Vector<T>{};
      }
      transpose_square<1, T>(square);
      for (int64_t c = 0; c < lanes; ++c) store(to + (column + c) * ld_to + row, square[c]);
    }
    for (; column < columns; ++column) {
      for (int64_t r = row; r < row + lanes; ++r) {
        to[column * ld_to + r] = r < rows ? from[r * ld_from + column] : T(0);
      }
    }
  }
}

// A matrix of parameters, or its transpose, as the left operand of products: itself where it can be, else a copy.
template <typename scalar_t>
class LeftOperand {
 public:
  using operand_t = operand_type<scalar_t>;

  LeftOperand(const scalar_t* matrix, int64_t rows, int64_t columns) : data_(nullptr), ld_(columns) {
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
  static LeftOperand transposed(const scalar_t* matrix, int64_t rows, int64_t columns) {
    // Elements travel as plain bits.
    using bits_t = std::conditional_t<std::is_same_v<operand_t, c10::BFloat16>, uint16_t, operand_t>;
    LeftOperand operand;
    operand.allocate(rows, columns);
    const LeftOperand source(matrix, columns, rows);
    at::parallel_for(0, rows, rows_per_task(columns), [&](int64_t begin, int64_t end) {
      transpose(reinterpret_cast<const bits_t*>(source.data_) + begin, source.ld_, columns, end - begin,
                reinterpret_cast<bits_t*>(operand.copy_.get()) + begin * operand.ld_, operand.ld_);
    });
    return operand;
  }

  const operand_t* row(int64_t index) const { return data_ + index * ld_; }
  int64_t ld() const { return ld_; }

 private:
  LeftOperand() = default;

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
