// What operands of products are made of, and transposes of matrices of it.
// Compiled once for each instruction set by foreach_isa.h after vector_simd.h, inside a namespace.

// Half, and bfloat16 where there is no dot product of pairs, are multiplied as float.
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

constexpr int64_t kLongestSum = 128;  // units of the depth in one running sum

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
