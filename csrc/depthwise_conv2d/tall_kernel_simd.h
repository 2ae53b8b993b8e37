// Minimal filtering F(2, 2), twice, along the columns of a map, for tall kernels. Once, outputs 2t and 2t + 1, from
// three neighbouring rows d under two rows g of the kernel, take three products instead of four:
//   shared = d1 (g0 + g1), y[2t] = shared + (d0 - d1) g0, y[2t + 1] = shared - (d1 - d2) g1.
// Three convolutions of half the height, under half the rows of the kernel, so replace a whole one, and nine passes of
// a quarter those. What an output reads belongs to its inputs: up to four rows of the kernel remain a plain sum.
// Compiled once for each instruction set by foreach_isa.h after winograd_block_simd.h, inside a namespace.

// Rows of outputs for each one of a pass.
constexpr int64_t kTallStep = 4;

// A smaller convolution: of every kTallStep-th row of inputs from some row on, under such rows of the kernel.
struct TallPass {
  // One bit for each of the two filters, row distance 1 and 2. In `inputs` where it takes the differences of rows at
  // that distance, else it takes the sums of such rows of the kernel; in `row`, a part of `inputs`, where what it gives
  // belongs to the second output.
  int64_t inputs, row;

  int64_t weights() const { return inputs ^ (kTallStep - 1); }
  int64_t input_row() const { return row + weights(); }
  int64_t weight_row() const { return row; }
  bool has_output(int64_t output) const { return (output & inputs) == row; }
  float sign() const { return row == 1 || row == 2 ? -1.0f : 1.0f; }

  // The rows of its inputs, of `size`, that are not padding. inside: those of the map.
  Range rows_inside(Range inside, int64_t size) const {
    const auto up = [&](int64_t row) { return row <= 0 ? 0 : std::min((row + kTallStep - 1) / kTallStep, size); };
    const int64_t begin = up(inside.begin - inputs - input_row());
    return {begin, std::max(begin, up(inside.end - input_row()))};
  }
};

constexpr TallPass kTallPasses[] = {{0, 0}, {1, 0}, {1, 1}, {2, 0}, {2, 2}, {3, 0}, {3, 1}, {3, 2}, {3, 3}};

// Of a kernel's rows, those that each pass takes, and those that are taken.
inline int64_t rows_of_pass(int64_t kernel_rows) { return (kernel_rows - 1) / kTallStep; }
inline int64_t tall_rows(int64_t kernel_rows) { return rows_of_pass(kernel_rows) * kTallStep; }

// Rows of inputs, array 0, and their differences: array 1 from the next row, array 2 from the one behind that, array 3
// those of array 1 from its row behind the next.
class RowDifferences {
 public:
  // Room for `size` elements of each array.
  explicit RowDifferences(int64_t size) : size_(size), differences_((kTallStep - 1) * size) {}

  // Of elements [begin, end) of rows of x, whole vectors. there: the rows that are not padding, before which up to
  // kTallStep - 1 rows of differences are none.
  void make(const float* x, int64_t x_step, Range there, Range elements) {
    x_ = x;
    x_step_ = x_step;
    elements_ = elements;
    first_ = std::max<int64_t>(0, there.begin - (kTallStep - 1));
    for (int64_t array = 1; array < kTallStep; ++array) {
      const int64_t distance = array == 1 ? 1 : 2, first = std::max<int64_t>(0, there.begin - array);
      for (int64_t row = first; row < there.end; ++row) {
        // Passes with array 2 take sums of neighbouring rows of the kernel, under odd rows of inputs.
        if (array == 2 && row % 2 == 0) continue;
        make_row(array, row, distance, row >= there.begin - (array - distance), row + distance < there.end);
      }
    }
  }

  // Where element 0 of a row would be.
  const float* row(int64_t array, int64_t index) const {
    return array == 0 ? x_ + index * x_step_ : difference(array, index);
  }
  int64_t row_step(int64_t array) const { return array == 0 ? x_step_ : elements_.end - elements_.begin; }

 private:
  float* difference(int64_t array, int64_t index) const {
    return differences_.get() + (array - 1) * size_ + (index - first_) * row_step(array) - elements_.begin;
  }

  // near, far: whether the rows whose difference it is are there; else they are zeros.
  void make_row(int64_t array, int64_t index, int64_t distance, bool near, bool far) const {
    const float *const a = row(array - distance, index), *const b = row(array - distance, index + distance);
    float* const to = difference(array, index);
    const auto fill = [&](const auto& value) {
      for (int64_t i = elements_.begin; i < elements_.end; i += kLanes<float>) store(to + i, value(i));
    };
    if (near && far) {
      fill([&](int64_t i) { return load(a + i) - load(b + i); });
    } else if (near) {
      fill([&](int64_t i) { return load(a + i); });
    } else {
      fill([&](int64_t i) { return -load(b + i); });
    }
  }

  int64_t size_, x_step_ = 0, first_ = 0;
  const float* x_ = nullptr;
  Range elements_ = {0, 0};
  Scratch<float> differences_;
};

// Rows of outputs from those of all passes, (passes, rows, width): store(row, i, vector).
template <typename Store>
void add_passes(const float* passes, Extent size, const Store& store) {
  for (int64_t output = 0; output < kTallStep; ++output) {
    // One of each array of inputs.
    const float* in[kTallStep];
    Vector<float> sign[kTallStep];
    for (size_t i = 0; i < std::size(kTallPasses); ++i) {
      const TallPass& pass = kTallPasses[i];
      if (!pass.has_output(output)) continue;
      in[pass.inputs] = passes + i * size.h * size.w;
      sign[pass.inputs] = broadcast(pass.sign());
    }
    for (int64_t row = 0; row < size.h; ++row) {
      for (int64_t i = row * size.w; i < (row + 1) * size.w; i += kLanes<float>) {
        Vector<float> sum = load(in[0] + i);
#pragma GCC unroll 3
        for (int k = 1; k < kTallStep; ++k) sum += load(in[k] + i) * sign[k];
        store(row * kTallStep + output, i - row * size.w, sum);
      }
    }
  }
}
