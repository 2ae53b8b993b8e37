// Token mixing on the CPU, a tile of channels of one image at a time: its normalised columns and its hidden
// layer stay in the core's cache between the products, and the products read the weights where they lie.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// They build on it.
#include "common/channel_tiles_simd.h"
#include "common/math_simd.h"
#include "common/units_simd.h"
// They build on those.
#include "common/amx_tiles_simd.h"
#include "common/vector_product_simd.h"
// It builds on the tiles.
#include "common/amx_strips_simd.h"
// It builds on the strips.
#include "common/amx_product_simd.h"

template <typename scalar_t>
void token_statistics(const Mixing<scalar_t>& m, acc_type<scalar_t>* mean, acc_type<scalar_t>* rstd) {
  using acc_t = acc_type<scalar_t>;
  const int64_t width = whole_vectors<acc_t>(m.channels);
  at::parallel_for(0, m.batch * m.tokens, rows_per_task(m.channels), [&](int64_t begin, int64_t end) {
    Scratch<acc_t> row(width);
    acc_t* const x = row.get();
    for (int64_t token = begin; token < end; ++token) {
      load_row(m.x.row(token / m.tokens, token % m.tokens), m.x.column_step, m.channels, x);
      std::fill(x + m.channels, x + width, acc_t(0));
      const acc_t rough_mean = sum_vectors<acc_t>(width, [&](int64_t i) { return load(x + i); }) / m.channels;
      // The second pass corrects the rounding of the mean, and with it the variance.
      std::fill(x + m.channels, x + width, rough_mean);
      const acc_t rest = sum_vectors<acc_t>(width, [&](int64_t i) { return load(x + i) - rough_mean; }) / m.channels;
      const acc_t square = sum_vectors<acc_t>(width,
                                              [&](int64_t i) {
                                                const Vector<acc_t> distance = load(x + i) - rough_mean;
                                                return distance * distance;
                                              }) /
                           m.channels;
      mean[token] = rough_mean + rest;
      rstd[token] = acc_t(1) / std::sqrt(square - rest * rest + static_cast<acc_t>(m.eps));
    }
  });
}

// Rows of n = (x - mean) * rstd * norm_weight + norm_bias; zeros up to the tile's width, where the parameters are
// zeros.
template <typename scalar_t>
class NormalisedRows {
 public:
  using acc_t = acc_type<scalar_t>;

  NormalisedRows(const Mixing<scalar_t>& m, const Statistics<acc_t>& statistics, const Tile& tile, int64_t first,
                 int64_t rows, scalar_t* copies)
      : x_(view_rows(m.x, tile, first, rows, copies)),
        mean_(statistics.mean + tile.image * m.tokens + first),
        rstd_(statistics.rstd + tile.image * m.tokens + first),
        weight_(m.norm_weight + tile.first),
        bias_(m.norm_bias + tile.first) {}

  Vector<acc_t> operator()(int64_t r, int64_t c) const {
    return (x_(r, c) - mean_[r]) * rstd_[r] * load(weight_ + c) + load(bias_ + c);
  }

 private:
  TensorRows<scalar_t> x_;
  const acc_t *mean_, *rstd_, *weight_, *bias_;
};

template <typename acc_t>
const acc_t* from_row(const acc_t* bias, int64_t row) {
  return bias == nullptr ? nullptr : bias + row;
}

template <typename scalar_t, typename Product = VectorProduct<scalar_t>>
void token_mixing_forward(const Mixing<scalar_t>& m, const Rows<scalar_t>& y, acc_type<scalar_t>* mean,
                          acc_type<scalar_t>* rstd) {
  using acc_t = acc_type<scalar_t>;
  if (!Product::pays(m.batch * m.channels)) return token_mixing_forward<scalar_t>(m, y, mean, rstd);
  const Tiling tiles(m.batch, m.channels, Product::kColumns);
  token_statistics(m, mean, rstd);
  const Statistics<acc_t> statistics{mean, rstd};
  const typename Product::Left weight1(m.weight1, m.hidden, m.tokens);
  const typename Product::Left weight2(m.weight2, m.weight2 ? m.tokens : 0, m.hidden);

  const bool streamed = is_streamed(y, m.batch * m.tokens * m.channels, m.channels);
  at::parallel_for(0, tiles.tasks(), 1, [&](int64_t begin, int64_t end) {
    const typename Product::Session session{};
    typename Product::Right normalised(m.tokens, tiles.columns);
    typename Product::Right hidden(m.hidden, tiles.columns);
    const ProductBlocks<Product> blocks(tiles.columns);
    Scratch<scalar_t> copies(Product::kTileRows * tiles.columns);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = Tile::of<acc_t>(tiles, index);
      for_row_blocks<Product>(m.tokens, [&](int64_t token, int64_t rows) {
        normalised.pack(NormalisedRows<scalar_t>(m, statistics, tile, token, rows, copies.get()), tile.width, token,
                        rows);
      });
      // The hidden layer, or y if there is only one linear; each block is worked on while the next one is made.
      with_activation<scalar_t, acc_t>(m.activation, [&](const auto& act) {
        for_row_blocks_and_past<Product>(m.hidden, [&](const RowRange& units, const RowRange& past) {
          const BiasedRows<acc_t> z{blocks.at(past), from_row(m.bias1, past.first), past.rows, tile.width};
          const auto activated = [=](int64_t r, int64_t c) { return act(z(r, c)); };
          const auto pack = [=, &hidden](int64_t begin, int64_t end) {
            hidden.pack_pieces(activated, tile.width, past.first, past.rows, begin, end);
          };
          const auto store = [&](int64_t, int64_t) {
            map_vectors(z, act);
            store_rows(z.z, y, tile, past.first, past.rows);
          };
          const auto multiply = [&](int64_t pieces, const auto& f) {
            session.multiply(units.rows, tile.width, m.tokens, weight1.from(units.first), normalised, false,
                             blocks.at(units), tile.width, pieces, f);
          };
          if (m.weight2) {
            multiply(hidden.pieces(tile.width), pack);
          } else {
            multiply(1, store);
          }
        });
      });
      if (m.weight2 == nullptr) continue;
      for_row_blocks_and_past<Product>(m.tokens, [&](const RowRange& tokens, const RowRange& past) {
        const auto store = [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            const acc_t bias = m.bias2 ? m.bias2[past.first + r] : acc_t(0);
            const acc_t* const update = blocks.at(past) + r * tile.width;
            map_row(m.x, y, tile, past.first + r, copies.get(), streamed,
                    [&](int64_t i, Vector<acc_t> x) { return x + load(update + i) + bias; });
          }
        };
        session.multiply(tokens.rows, tile.width, m.hidden, weight2.from(tokens.first), hidden, false,
                         blocks.at(tokens), tile.width, past.rows, store);
      });
    }
    if (streamed) end_of_stream();
  });
}

// What one part of the tasks adds to the gradients of the parameters. Rows of the matrices are whole vectors, and there
// is room for more of them, as products write.
template <typename scalar_t>
struct WeightGradients {
  using acc_t = acc_type<scalar_t>;
  int64_t ld1, ld2, size;
  Scratch<acc_t> all;
  acc_t *weight1, *weight2, *bias1, *bias2;  // (D, ld1), (S, ld2), (D), (S)

  explicit WeightGradients(const Mixing<scalar_t>& m)
      : ld1(whole_vectors<acc_t>(m.tokens)),
        ld2(whole_vectors<acc_t>(m.hidden)),
        size(whole_strips(m.hidden) * ld1 + whole_strips(m.tokens) * ld2 + m.hidden + m.tokens),
        all(size),
        weight1(all.get()),
        weight2(weight1 + whole_strips(m.hidden) * ld1),
        bias1(weight2 + whole_strips(m.tokens) * ld2),
        bias2(bias1 + m.hidden) {}
};

// The left operands of the backward products.
template <typename scalar_t, typename Product>
struct BackwardWeights {
  typename Product::Left weight1, transposed1, transposed2;

  explicit BackwardWeights(const Mixing<scalar_t>& m)
      : weight1(m.weight1, m.hidden, m.tokens),
        transposed1(Product::Left::transposed(m.weight1, m.tokens, m.hidden)),
        transposed2(Product::Left::transposed(m.weight2, m.weight2 ? m.hidden : 0, m.tokens)) {}
};

// Everything that one tile gives: dn, left in dx, and its share of the gradients of weights and biases.
template <typename scalar_t, typename Product>
class BackwardTile {
 public:
  using acc_t = acc_type<scalar_t>;

  BackwardTile(const Mixing<scalar_t>& m, const Statistics<acc_t>& statistics, const Rows<const scalar_t>& dy,
               const Rows<scalar_t>& dx, const BackwardWeights<scalar_t, Product>& weights, int64_t columns)
      : m_(m),
        statistics_(statistics),
        dy_(dy),
        dx_(dx),
        weights_(weights),
        normalised_(m.tokens, columns),
        dy_matrix_(m.weight2 ? m.tokens : 0, columns),
        dz_(m.hidden, columns),
        hidden_(m.weight2 ? m.hidden : 0, columns),
        turned_(columns, whole_vectors<acc_t>(std::max(m.tokens, m.hidden))),
        z_(Product::kTileRows * columns),
        dh_(Product::kTileRows * columns),
        copies_(Product::kTileRows * columns) {}

  // The first tile overwrites the gradients, the others add to them.
  void run(const Tile& tile, bool first, WeightGradients<scalar_t>& gradients) {
    if (first) std::fill_n(gradients.bias1, m_.hidden + m_.tokens, acc_t(0));
    load_panels(tile, gradients);
    for_row_blocks_and_past<Product>(m_.hidden, [&](const RowRange& units, const RowRange& past) {
      backpropagate_hidden(tile, units, past, gradients);
    });
    for_row_blocks_and_past<Product>(m_.tokens, [&](const RowRange& tokens, const RowRange& past) {
      const auto dn = [&](const RowRange& rows) { return (rows.first / Product::kTileRows % 2 ? dh_ : z_).get(); };
      const auto store = [&](int64_t begin, int64_t end) {
        store_rows(dn(past) + begin * tile.width, dx_, tile, past.first + begin, end - begin);
      };
      session_.multiply(tokens.rows, tile.width, m_.hidden, weights_.transposed1.from(tokens.first), dz_.right(), false,
                        dn(tokens), tile.width, past.rows, store);
    });
    turned_.set_transposed(normalised_.left(), m_.tokens, tile.width);
    session_.multiply(m_.hidden, gradients.ld1, tile.width, dz_.left(), turned_, !first, gradients.weight1,
                      gradients.ld1);
    if (m_.weight2 == nullptr) return;
    turned_.set_transposed(hidden_.left(), m_.hidden, tile.width);
    session_.multiply(m_.tokens, gradients.ld2, tile.width, dy_matrix_.left(), turned_, !first, gradients.weight2,
                      gradients.ld2);
  }

 private:
  void load_panels(const Tile& tile, WeightGradients<scalar_t>& gradients) {
    for_row_blocks<Product>(m_.tokens, [&](int64_t token, int64_t rows) {
      normalised_.store(NormalisedRows<scalar_t>(m_, statistics_, tile, token, rows, copies_.get()), tile.width, token,
                        rows);
      if (m_.weight2 == nullptr) return;
      acc_t* const dy = dh_.get();
      load_rows(dy_, tile, token, rows, dy);
      dy_matrix_.store(RowBlock<acc_t>{dy, tile.width}, tile.width, token, rows);
      add_row_sums(dy, tile.width, rows, gradients.bias2 + token);
    });
  }

  // h = act(z) and dz = dh * act'(z) for some units of the hidden layer; dz of those before, still in dh_, is stored.
  void backpropagate_hidden(const Tile& tile, const RowRange& units, const RowRange& past,
                            WeightGradients<scalar_t>& gradients) {
    const int64_t width = tile.width;
    acc_t *const z = z_.get(), *const dh = dh_.get();
    const BiasedRows<acc_t> z_rows{z, from_row(m_.bias1, units.first), units.rows, width};
    const auto store_dz = [=, this](int64_t begin, int64_t end) {
      dz_.store_pieces(RowBlock<acc_t>{dh, width}, width, past.first, past.rows, begin, end);
    };
    if (m_.weight2 || m_.activation != Activation::kNone) {
      session_.multiply(units.rows, width, m_.tokens, weights_.weight1.from(units.first), normalised_.right(), false, z,
                        width, dz_.pieces(width), store_dz);
    } else {
      store_dz(0, dz_.pieces(width));
    }
    if (m_.weight2 == nullptr) {
      load_rows(dy_, tile, units.first, units.rows, dh);
      activate_backward<scalar_t>(m_.activation, z_rows, dh);
    } else {
      with_activation_backward<scalar_t, acc_t>(m_.activation, [&](const auto& act) {
        // The slope takes the place of z.
        const auto activated = [=](int64_t r, int64_t c) {
          Vector<acc_t> h = z_rows(r, c);
          store(z + r * width + c, act(h));
          return h;
        };
        const auto store_hidden = [=, this](int64_t begin, int64_t end) {
          hidden_.store_pieces(activated, width, units.first, units.rows, begin, end);
        };
        session_.multiply(units.rows, width, m_.tokens, weights_.transposed2.from(units.first), dy_matrix_.right(),
                          false, dh, width, dz_.pieces(width), store_hidden);
      });
      for (int64_t i = 0; i < units.rows * width; i += kLanes<acc_t>) {
        store(dh + i, times_slope<acc_t>(load(dh + i), load(z + i)));
      }
    }
    add_row_sums(dh, width, units.rows, gradients.bias1 + units.first);
  }

  // Columns past the tile's last hold zeros in dy, and so in dh and dz.
  static void add_row_sums(const acc_t* block, int64_t width, int64_t rows, acc_t* sums) {
    for (int64_t r = 0; r < rows; ++r) {
      sums[r] += sum_vectors<acc_t>(width, [&](int64_t i) { return load(block + r * width + i); });
    }
  }

  const Mixing<scalar_t>& m_;
  const Statistics<acc_t>& statistics_;
  const Rows<const scalar_t>& dy_;
  const Rows<scalar_t>& dx_;
  const BackwardWeights<scalar_t, Product>& weights_;
  typename Product::Session session_;
  typename Product::TileMatrix normalised_, dy_matrix_, dz_;
  typename Product::TileRows hidden_;
  typename Product::Right turned_;
  Scratch<acc_t> z_, dh_;
  Scratch<scalar_t> copies_;
};

// dx of the rows of one part from dn, which lies in its place, and the part's share of the gradients of the affine.
template <typename scalar_t>
void layer_norm_backward(const Mixing<scalar_t>& m, const Statistics<acc_type<scalar_t>>& statistics,
                         const Rows<const scalar_t>& dy, const Rows<scalar_t>& dx, int64_t begin, int64_t end,
                         acc_type<scalar_t>* dnorm_weight, acc_type<scalar_t>* dnorm_bias) {
  using acc_t = acc_type<scalar_t>;
  using vec = Vector<acc_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t width = whole_vectors<acc_t>(m.channels);
  // Behind the last channel they stay zero, as norm_weight does: nothing there adds to a sum.
  Scratch<scalar_t> copies(4 * width);
  std::fill_n(copies.get(), 4 * width, scalar_t(0));
  for (int64_t token = begin; token < end; ++token) {
    const int64_t image = token / m.tokens, s = token % m.tokens;
    const acc_t mean = statistics.mean[token], rstd = statistics.rstd[token];
    const scalar_t* const x = whole_row(m.x.row(image, s), m.x.column_step, m.channels, copies.get());
    const scalar_t* const dn = whole_row<scalar_t>(dx.row(image, s), dx.column_step, m.channels, copies.get() + width);
    vec sum_g{}, sum_gx{};
    for (int64_t i = 0; i < width; i += lanes) {
      const vec d = load_as_acc(dn + i), xhat = (load_as_acc(x + i) - mean) * rstd, g = d * load(m.norm_weight + i);
      store(dnorm_weight + i, load(dnorm_weight + i) + d * xhat);
      store(dnorm_bias + i, load(dnorm_bias + i) + d);
      sum_g += g;
      sum_gx += g * xhat;
    }
    const acc_t mean_g = sum_lanes<acc_t>(sum_g) / m.channels, mean_gx = sum_lanes<acc_t>(sum_gx) / m.channels;
    // The residual passes dy on.
    const scalar_t* const past =
        m.weight2 ? whole_row(dy.row(image, s), dy.column_step, m.channels, copies.get() + 2 * width) : nullptr;
    scalar_t* const out = width == m.channels ? dx.row(image, s) : copies.get() + 3 * width;
    for (int64_t i = 0; i < width; i += lanes) {
      const vec xhat = (load_as_acc(x + i) - mean) * rstd, g = load_as_acc(dn + i) * load(m.norm_weight + i);
      const vec through_norm = (g - mean_g - xhat * mean_gx) * rstd;
      store_acc(out + i, past ? load_as_acc(past + i) + through_norm : through_norm);
    }
    if (width != m.channels) std::copy_n(out, m.channels, dx.row(image, s));
  }
}

template <typename scalar_t, typename Product = VectorProduct<scalar_t>>
void token_mixing_backward(const Mixing<scalar_t>& m, const Statistics<acc_type<scalar_t>>& statistics,
                           const Rows<const scalar_t>& dy, const Gradients<scalar_t>& out) {
  using acc_t = acc_type<scalar_t>;
  if (!Product::pays(m.batch * m.channels)) return token_mixing_backward<scalar_t>(m, statistics, dy, out);
  const BackwardWeights<scalar_t, Product> weights(m);
  const Tiling tiles(m.batch, m.channels, kGradientColumns);
  const int64_t tasks = tiles.tasks();
  using Part = WeightGradients<scalar_t>;
  std::vector<Part> parts;
  for (int64_t part = 0; part < std::min<int64_t>(tasks, at::get_num_threads()); ++part) parts.emplace_back(m);
  in_parts(tasks, parts.size(), [&](int64_t part, int64_t begin, int64_t end) {
    BackwardTile<scalar_t, Product> tile(m, statistics, dy, out.dx, weights, tiles.columns);
    sum_tasks(
        begin, end, parts[part], [&] { return Part(m); },
        [&](int64_t index, bool first, Part& sums) { tile.run(Tile::of<acc_t>(tiles, index), first, sums); });
  });
  sum_parts(parts, &Part::weight1, m.hidden, m.tokens, parts[0].ld1, out.dweight1);
  sum_parts(parts, &Part::weight2, m.tokens, m.hidden, parts[0].ld2, out.dweight2);
  sum_parts(parts, &Part::bias1, 1, m.hidden, 0, out.dbias1);
  sum_parts(parts, &Part::bias2, 1, m.tokens, 0, out.dbias2);

  const int64_t rows = m.batch * m.tokens;
  const int64_t row_parts = std::clamp<int64_t>(rows / rows_per_task(m.channels), 1, at::get_num_threads());
  const int64_t width = whole_vectors<acc_t>(m.channels);
  Scratch<acc_t> sums(row_parts * 2 * width);
  std::fill_n(sums.get(), row_parts * 2 * width, acc_t(0));
  in_parts(rows, row_parts, [&](int64_t part, int64_t begin, int64_t end) {
    // Sums of a few rows first: long ones of one element at a time lose digits.
    constexpr int64_t kRowsPerSum = 64;
    Scratch<acc_t> few(2 * width);
    acc_t* const total = sums.get() + part * 2 * width;
    for (int64_t row = begin; row < end; row += kRowsPerSum) {
      std::fill_n(few.get(), 2 * width, acc_t(0));
      layer_norm_backward(m, statistics, dy, out.dx, row, std::min(row + kRowsPerSum, end), few.get(),
                          few.get() + width);
      for (int64_t i = 0; i < 2 * width; ++i) total[i] += few.get()[i];
    }
  });
  for (int64_t part = 1; part < row_parts; ++part) {
    for (int64_t i = 0; i < 2 * width; ++i) sums.get()[i] += sums.get()[part * 2 * width + i];
  }
  std::copy_n(sums.get(), m.channels, out.dnorm_weight);
  std::copy_n(sums.get() + width, m.channels, out.dnorm_bias);
}
