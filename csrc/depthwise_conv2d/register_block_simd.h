// The innermost loops of a convolution without vertical steps: a block of outputs in registers, under a few rows of the
// kernel.
// Compiled once for each instruction set by foreach_isa.h after units_simd.h, inside a namespace.

// Rows of outputs, vectors of each, and rows of the kernel at a time. With as many weights as are held, and a pixel, 26
// of the 32 registers of AVX-512, 14 of the 16 elsewhere.
constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kBlockVectors = 2;
constexpr int kKernelRows = 9;
constexpr int kHeldWeights = kVectorBytes == 64 ? 9 : 5;

// Where unit `tap` of a kernel's row begins. Of an odd number of columns the last unit of two repeats one, with weight
// zero, so that no input outside of the kernel counts.
template <typename operand_t>
int64_t unit_column(int64_t tap, int64_t columns) {
  return std::min(tap * kUnitDepth<operand_t>, columns - kUnitDepth<operand_t>);
}

// Calls f for the units of a channel's kernel, or of some channels' at once: (units of KW, KH). weight(i): the i-th of
// (KH, KW), as the lower half of a unit where it has two.
template <typename operand_t, typename scalar_t, typename Weight, typename F>
void for_kernel_units(const Correlation<scalar_t>& c, const Weight& weight, const F& f) {
  const Extent kernel = c.kernel;
  // A flipped kernel begins with its last weight.
  const int64_t first = c.flipped ? kernel.h * kernel.w - 1 : 0, next = c.flipped ? -1 : 1;
  for (int64_t tap = 0; tap < units<operand_t>(kernel.w); ++tap) {
    const int64_t kw = unit_column<operand_t>(tap, kernel.w);
    int64_t index = first + next * kw;
    for (int64_t kh = 0; kh < kernel.h; ++kh, index += next * kernel.w) {
      auto unit = weight(index);
      if constexpr (kUnitDepth<operand_t> == 2) {
        const bool repeated = kw < tap * 2;
        unit = (repeated ? decltype(unit){} : unit) | weight(index + next) << 16;
      }
      f(unit);
    }
  }
}

// Some rows and columns of a kernel.
struct KernelPart {
  int64_t row, rows, column, columns;
};

// Parts of at most kKernelRows rows; long sums are made of short ones, of twice kLongestSum, which halves what each
// part costs beside its products.
inline std::vector<KernelPart> kernel_parts(Extent kernel) {
  const int64_t tall = (kernel.h + kKernelRows - 1) / kKernelRows;
  const int64_t most = std::max<int64_t>(1, 2 * kLongestSum * tall / kernel.h);
  const int64_t wide = (kernel.w + most - 1) / most;
  std::vector<KernelPart> parts;
  for (int64_t i = 0; i < tall; ++i) {
    const int64_t row = i * kernel.h / tall, end = (i + 1) * kernel.h / tall;
    for (int64_t j = 0; j < wide; ++j) {
      const int64_t column = j * kernel.w / wide, column_end = (j + 1) * kernel.w / wide;
      parts.push_back({row, end - row, column, column_end - column});
    }
  }
  return parts;
}

// Rows or columns [begin, end), not in descending order.
struct Range {
  int64_t begin, end;

  // One bit for each of [0, size), at most 31, that lies within.
  uint32_t bits(int64_t size) const {
    const auto below = [&](int64_t index) { return (uint32_t{1} << std::clamp<int64_t>(index, 0, size)) - 1; };
    return below(end) & ~below(begin);
  }
};

// How many steps lead from 0 to `place`, or beyond it.
inline int64_t steps_to(int64_t place, int64_t step) { return place <= 0 ? 0 : (place + step - 1) / step; }

// What is asked for while products run: something for each row and vector, or pixel, of a block.
struct Ahead {
  const char* data;
  int64_t row_step, column_step;

  const char* at(int64_t row, int64_t column) const { return data + row * row_step + column * column_step; }
};

// A map from a pixel on, `column_step` elements for each column.
template <typename scalar_t>
Ahead ahead_in(const Map<const scalar_t>& map, const scalar_t* pixel, int64_t column_step) {
  constexpr int64_t kSize = sizeof(scalar_t);
  return {reinterpret_cast<const char*>(pixel), map.row_step * kSize, column_step * kSize};
}

// The rows of a tile, where `step` of them are made at once.
template <typename scalar_t>
int64_t whole_steps(const Correlation<scalar_t>& c, int64_t step) {
  return (c.tile.h + step - 1) / step * step;
}

// Adds the products of one column of kTaps rows of the kernel. in: where the block's first row finds its inputs, of
// which only rows with a bit of `inside` are not padding; pixel(in, v): those of vector v.
template <typename operand_t, int kTaps, int kVectors, typename in_t, typename Pixel, typename Weight>
__attribute__((always_inline)) inline void add_column(const in_t* in, int64_t input_row, uint32_t inside,
                                                      const Pixel& pixel, const Weight& weight,
                                                      Vector<acc_type<operand_t>> (&acc)[kBlockRows][kVectors]) {
  if constexpr (kTaps > kHeldWeights) {
    constexpr int kHalf = (kTaps + 1) / 2;
    add_column<operand_t, kHalf, kVectors>(in, input_row, inside, pixel, weight, acc);
    add_column<operand_t, kTaps - kHalf, kVectors>(
        in + kHalf * input_row, input_row, inside >> kHalf, pixel, [&](int row) { return weight(kHalf + row); }, acc);
    return;
  }
  UnitVector<operand_t> w[kTaps];
#pragma GCC unroll 9
  for (int k = 0; k < kTaps; ++k) {
    w[k] = weight(k);
    keep_in_register(w[k]);
  }
  keep_in_register(inside);
#pragma GCC unroll 16
  for (int row = 0; row < kBlockRows + kTaps - 1; ++row, in += input_row) {
    keep_in_register(in);
    if ((inside & uint32_t{1} << row) == 0) continue;
    // Compilers else put them on the stack, for there are branches between their uses.
#pragma GCC unroll 9
    for (int k = 0; k < kTaps; ++k) keep_in_register(w[k]);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      UnitVector<operand_t> x = pixel(in, v);
      keep_in_register(x);
#pragma GCC unroll 9
      for (int k = 0; k < kTaps; ++k) {
        if (row - k >= 0 && row - k < kBlockRows) acc[row - k][v] = multiply_add<operand_t>(acc[row - k][v], x, w[k]);
      }
    }
  }
}

template <typename T, int kVectors>
__attribute__((always_inline)) inline void clear_block(Vector<T> (&acc)[kBlockRows][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[r][v] = Vector<T>{};
  }
}

// Adds to a block of outputs what they are under kTaps rows of the kernel, `taps` of each. inputs(tap): where the
// block's first row finds its own, `rows` of which are not padding; pixel(in, v): those of vector v; kernel(tap): a
// column of the kernel; weight(column, row): one of its weights. prefetch(row, vector) asks for a cache line for each
// vector of outputs: spread over the taps that costs nothing.
template <typename operand_t, int kTaps, int kVectors, typename Inputs, typename Pixel, typename Kernel,
          typename Weight, typename Prefetch>
__attribute__((always_inline)) inline void add_columns(Range taps, const Inputs& inputs, int64_t input_row, Range rows,
                                                       const Pixel& pixel, const Kernel& kernel, const Weight& weight,
                                                       const Prefetch& prefetch,
                                                       Vector<acc_type<operand_t>> (&acc)[kBlockRows][kVectors]) {
  if (rows.end <= 0 || rows.begin >= kBlockRows + kTaps - 1) return;
  const uint32_t inside = rows.bits(kBlockRows + kTaps - 1);
  for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
    for (int64_t row = tap - taps.begin; row < kBlockRows; row += taps.end - taps.begin) {
      for (int v = 0; v < kVectors; ++v) prefetch(row, v);
    }
    const unit_type<operand_t>* column = kernel(tap);
    keep_in_register(column);
    add_column<operand_t, kTaps, kVectors>(
        inputs(tap), input_row, inside, pixel, [&](int row) { return weight(column, row); }, acc);
  }
}
