// The passes of the shifted split attention over its pixels, group by group of channels.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// They build on it.
#include "common/math_simd.h"
#include "split_attention/channel_parts_simd.h"
// It builds on those.
#include "split_attention/split_gate_simd.h"

// Whether a map of some branches is stored past the caches: where it is larger than a core's own, a line would be read
// before it is overwritten. Every group of channels has to be whole vectors.
template <typename scalar_t>
bool is_streamed(const FeatureShape& shape, const FeatureMap<scalar_t>& map, int64_t branches) {
  constexpr int64_t kLarge = int64_t{2} << 20, lanes = kLanes<acc_type<scalar_t>>;
  const int64_t pixels = shape.batch * shape.height * shape.width;
  return pixels * branches * shape.channels * static_cast<int64_t>(sizeof(scalar_t)) >= kLarge &&
         reinterpret_cast<uintptr_t>(map.data) % (lanes * sizeof(scalar_t)) == 0 &&
         shape.channels % (kGroups * lanes) == 0;
}

// Pixels that are taken together.
constexpr int64_t kRun = 4;

// Calls f(column, count) for the pixels of a stretch, a few at a time: away from the border, their neighbours are as
// many pixels side by side.
template <typename F>
inline void for_runs(const FeatureShape& shape, const Stretch& stretch, const F& f) {
  int64_t column = stretch.begin;
  while (column < stretch.end) {
    if (column > 0 && column + kRun <= std::min(stretch.end, shape.width - 1)) {
      f(column, std::integral_constant<int64_t, kRun>{});
      column += kRun;
    } else {
      f(column, std::integral_constant<int64_t, 1>{});
      ++column;
    }
  }
}

// A group of channels.
struct Group {
  int64_t first, size;

  Group(int group, int64_t channels)
      : first(group_start(group, channels)), size(group_start(group + 1, channels) - first) {}
};

// Calls f(column, count, group, sources) for the pixels of a stretch: each group of channels, and where the first of
// `count` pixels finds it in each branch.
template <typename scalar_t, typename F>
inline void for_sources(const FeatureShape& shape, const FeatureMap<const scalar_t>& x, const Stretch& stretch,
                        const F& f) {
  for_runs(shape, stretch, [&](int64_t column, auto count) {
    for (int g = 0; g < kGroups; ++g) {
      const Group group(g, shape.channels);
      const scalar_t* sources[kBranches];
      for (int k = 0; k < kBranches; ++k) {
        const Offset from = source_of(k, g);
        sources[k] = x.pixel(stretch.image, std::clamp<int64_t>(stretch.row + from.h, 0, shape.height - 1),
                             std::clamp<int64_t>(column + from.w, 0, shape.width - 1)) +
                     k * shape.channels + group.first;
      }
      f(column, count, group, sources);
    }
  });
}

// The same channels of each branch.
template <typename T>
struct Branches {
  Vector<T> s0, s1, s2;
};

// Asks for those of the next run, too: the groups lie a whole pixel apart, and hardware prefetchers miss that.
template <typename scalar_t, typename Part>
inline Branches<acc_type<scalar_t>> load_branches(const scalar_t* const (&sources)[kBranches], int64_t offset,
                                                  int64_t next, Part part) {
  for (const scalar_t* source : sources) __builtin_prefetch(source + offset + next);
  return {load_part(sources[0] + offset, part), load_part(sources[1] + offset, part),
          load_part(sources[2] + offset, part)};
}

// y = sum over the branches of weights * branch. Parallel over stretches of rows, the last ones first: the sums have
// just read them, and some are in the caches still.
template <typename scalar_t>
void combine_branches(const FeatureShape& shape, const FeatureMap<const scalar_t>& x,
                      const acc_type<scalar_t>* all_weights, const FeatureMap<scalar_t>& y) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stretches = shape.batch * shape.stretches_of_image(), channels = shape.channels;
  const int64_t grain = rows_per_task(shape.width / shape.stretches_of_row() * kBranches * channels);
  const bool streamed = is_streamed(shape, y, 1);
  at::parallel_for(0, stretches, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = end - 1; index >= begin; --index) {
      const Stretch stretch = shape.stretch(index);
      for_sources(shape, x, stretch, [&](int64_t column, auto count, const Group& group, const auto& sources) {
        const acc_t* const weights = all_weights + stretch.image * kBranches * channels + group.first;
        scalar_t* const to = y.pixel(stretch.image, stretch.row, column) + group.first;
        for_vectors<acc_t>(group.size, [&](int64_t i, auto part) {
          const Vector<acc_t> weight0 = load_part(weights + i, part);
          const Vector<acc_t> weight1 = load_part(weights + channels + i, part);
          const Vector<acc_t> weight2 = load_part(weights + 2 * channels + i, part);
          for (int64_t p = 0; p < count; ++p) {
            const auto [s0, s1, s2] = load_branches(sources, p * x.column_step + i, kRun * x.column_step, part);
            store_part(to + p * y.column_step + i, weight0 * s0 + weight1 * s1 + weight2 * s2, part, streamed);
          }
        });
      });
    }
    if (streamed) end_of_stream();
  });
}

// Adds up `columns` numbers of the pixels of every image: add(stretch, sums) adds those of a stretch. Sums of a few
// pixels in the accumulator's type, the rest in float64; in an order that the shape alone decides. Parallel over parts
// of images.
template <typename acc_t, typename F>
void sum_pixels(const FeatureShape& shape, int64_t columns, acc_t* sums, const F& add) {
  constexpr int64_t kElementsOfPart = 65536, kPixelsOfSum = 32;
  const int64_t stretches = shape.stretches_of_image();
  const int64_t elements = shape.width * kBranches * shape.channels / shape.stretches_of_row();
  const int64_t parts = std::clamp<int64_t>(stretches * elements / kElementsOfPart, 1, stretches);
  const int64_t together = kPixelsOfSum / shape.width + 1;
  const Scratch<double> of_parts(shape.batch * parts * columns);
  at::parallel_for(0, shape.batch * parts, rows_per_task(stretches / parts * elements),
                   [&](int64_t begin, int64_t end) {
                     const Scratch<acc_t> few(columns);
                     for (int64_t index = begin; index < end; ++index) {
                       double* const total = of_parts.get() + index * columns;
                       std::fill_n(total, columns, 0.0);
                       const int64_t image = index / parts * stretches, part = index % parts;
                       const int64_t last = image + (part + 1) * stretches / parts;
                       for (int64_t first = image + part * stretches / parts; first < last; first += together) {
                         std::fill_n(few.get(), columns, acc_t(0));
                         for (int64_t i = first; i < std::min(first + together, last); ++i)
                           add(shape.stretch(i), few.get());
                         for (int64_t i = 0; i < columns; ++i) total[i] += few.get()[i];
                       }
                     }
                   });
  for (int64_t image = 0; image < shape.batch; ++image) {
    double* const total = of_parts.get() + image * parts * columns;
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = 0; i < columns; ++i) total[i] += total[part * columns + i];
    }
    for (int64_t i = 0; i < columns; ++i) sums[image * columns + i] = static_cast<acc_t>(total[i]);
  }
}

// The sum of all branches over the pixels.
template <typename scalar_t>
void sum_branches(const FeatureShape& shape, const FeatureMap<const scalar_t>& x, acc_type<scalar_t>* a) {
  using acc_t = acc_type<scalar_t>;
  sum_pixels(shape, shape.channels, a, [&](const Stretch& stretch, acc_t* few) {
    for_sources(shape, x, stretch, [&](int64_t, auto count, const Group& group, const auto& sources) {
      for_vectors<acc_t>(group.size, [&](int64_t i, auto part) {
        Vector<acc_t> sum = load_part(few + group.first + i, part);
        for (int64_t p = 0; p < count; ++p) {
          const auto [s0, s1, s2] = load_branches(sources, p * x.column_step + i, kRun * x.column_step, part);
          sum += s0 + s1 + s2;
        }
        store_part(few + group.first + i, sum, part);
      });
    });
  });
}

// The sum over the pixels of dy times each branch.
template <typename scalar_t>
void sum_products(const FeatureShape& shape, const FeatureMap<const scalar_t>& dy, const FeatureMap<const scalar_t>& x,
                  acc_type<scalar_t>* dweights) {
  using acc_t = acc_type<scalar_t>;
  const int64_t channels = shape.channels;
  sum_pixels(shape, kBranches * channels, dweights, [&](const Stretch& stretch, acc_t* few) {
    for_sources(shape, x, stretch, [&](int64_t column, auto count, const Group& group, const auto& sources) {
      const scalar_t* const gradient = dy.pixel(stretch.image, stretch.row, column) + group.first;
      for_vectors<acc_t>(group.size, [&](int64_t i, auto part) {
        acc_t* const to = few + group.first + i;
        Vector<acc_t> sum0 = load_part(to, part), sum1 = load_part(to + channels, part);
        Vector<acc_t> sum2 = load_part(to + 2 * channels, part);
        for (int64_t p = 0; p < count; ++p) {
          const Vector<acc_t> d = load_part(gradient + p * dy.column_step + i, part);
          const auto [s0, s1, s2] = load_branches(sources, p * x.column_step + i, kRun * x.column_step, part);
          sum0 += d * s0;
          sum1 += d * s1;
          sum2 += d * s2;
        }
        store_part(to, sum0, part);
        store_part(to + channels, sum1, part);
        store_part(to + 2 * channels, sum2, part);
      });
    });
  });
}

// All of the forward pass: the sums, the weights that follow from them, y.
template <typename scalar_t>
void attend(const FeatureShape& shape, int64_t hidden, const FeatureMap<const scalar_t>& x,
            const GateMatrices<const scalar_t>& matrices, const FeatureMap<scalar_t>& y, acc_type<scalar_t>* total,
            acc_type<scalar_t>* weights) {
  sum_branches(shape, x, total);
  weigh_branches({shape.batch, shape.channels, hidden}, total, matrices, weights);
  combine_branches(shape, x, weights, y);
}

// From dy to da, the gradient of the sums, and those of the matrices unless they are null.
template <typename scalar_t>
void gate_backward(const FeatureShape& shape, int64_t hidden, const FeatureMap<const scalar_t>& dy,
                   const FeatureMap<const scalar_t>& x, const acc_type<scalar_t>* total,
                   const acc_type<scalar_t>* weights, const GateMatrices<const scalar_t>& matrices,
                   acc_type<scalar_t>* da, const GateMatrices<scalar_t>& products) {
  const Scratch<acc_type<scalar_t>> dweights(shape.batch * kBranches * shape.channels);
  sum_products(shape, dy, x, dweights.get());
  weigh_branches_backward({shape.batch, shape.channels, hidden}, dweights.get(), total, weights, matrices, da,
                          products);
}

// dx = weights * dy + da for each branch, behind the adjoint of its shift: a pixel gets what went to its neighbour, and
// on the border it took from itself, its own. Parallel over stretches of rows.
template <typename scalar_t>
void spread_gradient(const FeatureShape& shape, const FeatureMap<const scalar_t>& dy,
                     const acc_type<scalar_t>* all_weights, const acc_type<scalar_t>* all_da,
                     const FeatureMap<scalar_t>& dx) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stretches = shape.batch * shape.stretches_of_image(), channels = shape.channels;
  const int64_t grain = rows_per_task(shape.width / shape.stretches_of_row() * kBranches * channels);
  const bool streamed = is_streamed(shape, dx, kBranches);
  const auto inside = [&](int64_t row, int64_t column) {
    return 0 <= row && row < shape.height && 0 <= column && column < shape.width;
  };
  at::parallel_for(0, stretches, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const Stretch stretch = shape.stretch(index);
      for_runs(shape, stretch, [&](int64_t column, auto count) {
        for (int branch_group = 0; branch_group < kBranches * kGroups; ++branch_group) {
          const int k = branch_group / kGroups, g = branch_group % kGroups;
          const Group group(g, channels);
          const Offset from = source_of(k, g);
          const acc_t* const weights = all_weights + (stretch.image * kBranches + k) * channels + group.first;
          const acc_t* const da = all_da + stretch.image * channels + group.first;
          const scalar_t* const own = dy.pixel(stretch.image, stretch.row, column) + group.first;
          const scalar_t* const moved = own - from.h * dy.row_step - from.w * dy.column_step;
          scalar_t* const to = dx.pixel(stretch.image, stretch.row, column) + k * channels + group.first;
          const auto write = [&](acc_t taken, const auto& gradient) {
            for_vectors<acc_t>(group.size, [&](int64_t i, auto part) {
              const Vector<acc_t> weight = load_part(weights + i, part), add = taken * load_part(da + i, part);
              for (int64_t p = 0; p < count; ++p) {
                const Vector<acc_t> d = gradient(p * dy.column_step + i, part);
                store_part(to + p * dx.column_step + i, weight * d + add, part, streamed);
              }
            });
          };
          const bool takes_moved = inside(stretch.row - from.h, column - from.w);
          const bool takes_own = !inside(stretch.row + from.h, column + from.w);
          if (takes_moved && takes_own) {
            write(2, [&](int64_t at, auto part) { return load_part(own + at, part) + load_part(moved + at, part); });
          } else if (takes_moved || takes_own) {
            const scalar_t* const source = takes_moved ? moved : own;
            write(1, [&](int64_t at, auto part) { return load_part(source + at, part); });
          } else {
            for (int64_t p = 0; p < count; ++p) std::fill_n(to + p * dx.column_step, group.size, scalar_t(0));
          }
        }
      });
    }
    if (streamed) end_of_stream();
  });
}
