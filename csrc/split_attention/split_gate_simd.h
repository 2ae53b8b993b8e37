// The small perceptron between the passes of the shifted split attention, on all images at once: from the sums over the
// pixels to the weights of the branches, and back.
// Compiled once for each instruction set by foreach_isa.h after channel_parts_simd.h, inside a namespace.

// Images, or rows of a gradient, that share what is read of a matrix.
constexpr int64_t kTogether = 8;

// Of the terms of a long sum, as many are added up in one go.
constexpr int64_t kLongestSum = 128;

// Calls f(rows, first, count) for the images, some at a time: where the numbers of each begin, of `size` an image.
// Behind the last image, those of the last one again.
template <typename acc_t, typename F>
inline void for_images(const acc_t* numbers, int64_t size, int64_t images, const F& f) {
  for (int64_t first = 0; first < images; first += kTogether) {
    const acc_t* rows[kTogether];
    for (int64_t j = 0; j < kTogether; ++j) rows[j] = numbers + std::min(first + j, images - 1) * size;
    f(rows, first, std::min(kTogether, images - first));
  }
}

// out (images, rows) = in @ matrix^T. Parallel over the rows of the matrix.
template <typename scalar_t>
void multiply_rows(const scalar_t* matrix, int64_t rows, int64_t columns, const acc_type<scalar_t>* in, int64_t images,
                   acc_type<scalar_t>* out) {
  using acc_t = acc_type<scalar_t>;
  at::parallel_for(0, rows, rows_per_task(columns * images), [&](int64_t begin, int64_t end) {
    for_images(in, columns, images, [&](const auto& factors, int64_t first, int64_t count) {
      for (int64_t row = begin; row < end; ++row) {
        Vector<acc_t> sums[kTogether] = {};
        for_vectors<acc_t>(columns, [&](int64_t i, auto part) {
          const Vector<acc_t> own = load_part(matrix + row * columns + i, part);
          for (int64_t j = 0; j < kTogether; ++j) sums[j] += own * load_part(factors[j] + i, part);
        });
        for (int64_t j = 0; j < count; ++j) out[(first + j) * rows + row] = sum_lanes<acc_t>(sums[j]);
      }
    });
  });
}

// out (images, columns) = in @ matrix. Parallel over vectors of columns.
template <typename scalar_t>
void multiply_columns(const scalar_t* matrix, int64_t rows, int64_t columns, const acc_type<scalar_t>* in,
                      int64_t images, acc_type<scalar_t>* out) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t vectors = (columns + lanes - 1) / lanes;
  at::parallel_for(0, vectors, rows_per_task(rows * lanes * images), [&](int64_t begin, int64_t end) {
    for_images(in, rows, images, [&](const auto& factors, int64_t first, int64_t count) {
      for_vectors<acc_t>(std::min(end * lanes, columns) - begin * lanes, [&](int64_t i, auto part) {
        const scalar_t* const own = matrix + begin * lanes + i;
        Vector<acc_t> totals[kTogether] = {};
        for (int64_t row = 0; row < rows;) {
          Vector<acc_t> sums[kTogether] = {};
          for (const int64_t last = std::min(row + kLongestSum, rows); row < last; ++row) {
            const Vector<acc_t> factor = load_part(own + row * columns, part);
            for (int64_t j = 0; j < kTogether; ++j) sums[j] += factor * factors[j][row];
          }
          for (int64_t j = 0; j < kTogether; ++j) totals[j] += sums[j];
        }
        for (int64_t j = 0; j < count; ++j)
          store_part(out + (first + j) * columns + begin * lanes + i, totals[j], part);
      });
    });
  });
}

// out (rows, columns) = left^T @ right, (images, rows) and (images, columns). Parallel over the rows.
template <typename scalar_t>
void multiply_images(const acc_type<scalar_t>* left, int64_t rows, const acc_type<scalar_t>* right, int64_t columns,
                     int64_t images, scalar_t* out) {
  using acc_t = acc_type<scalar_t>;
  at::parallel_for(0, rows, rows_per_task(columns * images), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kTogether) {
      int64_t row[kTogether];  // behind the last one, that one again
      for (int64_t j = 0; j < kTogether; ++j) row[j] = std::min(first + j, rows - 1);
      for_vectors<acc_t>(columns, [&](int64_t i, auto part) {
        Vector<acc_t> totals[kTogether] = {};
        for (int64_t image = 0; image < images;) {
          Vector<acc_t> sums[kTogether] = {};
          for (const int64_t last = std::min(image + kLongestSum, images); image < last; ++image) {
            const Vector<acc_t> factor = load_part(right + image * columns + i, part);
            for (int64_t j = 0; j < kTogether; ++j) sums[j] += factor * left[image * rows + row[j]];
          }
          for (int64_t j = 0; j < kTogether; ++j) totals[j] += sums[j];
        }
        for (int64_t j = 0; j < std::min(kTogether, end - first); ++j) {
          store_part(out + row[j] * columns + i, totals[j], part);
        }
      });
    }
  });
}

// weights = softmax over the branches of weight2 @ gelu(weight1 @ total).
template <typename scalar_t>
void weigh_branches(const GateShape& shape, const acc_type<scalar_t>* total,
                    const GateMatrices<const scalar_t>& matrices, acc_type<scalar_t>* weights) {
  using acc_t = acc_type<scalar_t>;
  const int64_t channels = shape.channels;
  const Scratch<acc_t> hidden(shape.batch * shape.hidden);
  multiply_rows(matrices.weight1, shape.hidden, channels, total, shape.batch, hidden.get());
  with_activation<acc_t, acc_t>(Activation::kGelu, [&](const auto& gelu) {
    for_vectors<acc_t>(shape.batch * shape.hidden, [&](int64_t i, auto part) {
      acc_t* const z = hidden.get() + i;
      store_part(z, gelu(load_part(z, part)), part);
    });
  });
  multiply_rows(matrices.weight2, kBranches * channels, shape.hidden, hidden.get(), shape.batch, weights);
  for (int64_t image = 0; image < shape.batch; ++image) {
    for_vectors<acc_t>(channels, [&](int64_t i, auto part) {
      acc_t* const own = weights + image * kBranches * channels + i;
      Vector<acc_t> powers[kBranches];
      for (int k = 0; k < kBranches; ++k) powers[k] = load_part(own + k * channels, part);
      Vector<acc_t> most = powers[0], sum{};
      for (int k = 1; k < kBranches; ++k) most = powers[k] > most ? powers[k] : most;
      for (Vector<acc_t>& power : powers) sum += power = exp(power - most);
      for (int k = 0; k < kBranches; ++k) store_part(own + k * channels, powers[k] / sum, part);
    });
  }
}

// The gradient of the sums from that of the weights, and those of the matrices unless they are null; the hidden layer
// is computed again.
template <typename scalar_t>
void weigh_branches_backward(const GateShape& shape, const acc_type<scalar_t>* dweights,
                             const acc_type<scalar_t>* total, const acc_type<scalar_t>* weights,
                             const GateMatrices<const scalar_t>& matrices, acc_type<scalar_t>* da,
                             const GateMatrices<scalar_t>& products) {
  using acc_t = acc_type<scalar_t>;
  const int64_t channels = shape.channels, size = shape.batch * shape.hidden;
  const Scratch<acc_t> dlogits(shape.batch * kBranches * channels), inner(size), dinner(size);
  for (int64_t image = 0; image < shape.batch; ++image) {
    for_vectors<acc_t>(channels, [&](int64_t i, auto part) {
      const int64_t at = image * kBranches * channels + i;
      Vector<acc_t> sum{};
      for (int k = 0; k < kBranches; ++k) {
        sum += load_part(weights + at + k * channels, part) * load_part(dweights + at + k * channels, part);
      }
      for (int k = 0; k < kBranches; ++k) {
        const Vector<acc_t> own = load_part(dweights + at + k * channels, part) - sum;
        store_part(dlogits.get() + at + k * channels, load_part(weights + at + k * channels, part) * own, part);
      }
    });
  }
  multiply_rows(matrices.weight1, shape.hidden, channels, total, shape.batch, inner.get());
  multiply_columns(matrices.weight2, kBranches * channels, shape.hidden, dlogits.get(), shape.batch, dinner.get());
  with_activation_backward<acc_t, acc_t>(Activation::kGelu, [&](const auto& gelu) {
    for_vectors<acc_t>(size, [&](int64_t i, auto part) {
      Vector<acc_t> h = load_part(inner.get() + i, part);
      store_part(dinner.get() + i, load_part(dinner.get() + i, part) * gelu(h), part);
      store_part(inner.get() + i, h, part);
    });
  });
  multiply_columns(matrices.weight1, shape.hidden, channels, dinner.get(), shape.batch, da);
  if (products.weight1 == nullptr) return;
  multiply_images(dinner.get(), shape.hidden, total, channels, shape.batch, products.weight1);
  multiply_images(dlogits.get(), kBranches * channels, inner.get(), shape.hidden, shape.batch, products.weight2);
}
