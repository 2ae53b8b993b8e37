// The affine-folded linear over the tokens on the CPU, a tile of channels of one image at a time: one product with the
// weight as it is, then bias, LayerScale and residual in one pass over the accumulators. Of 16 bits, x is the other
// operand as it is, and Affine comes in that pass too; else Affine comes first: where beta takes most of alpha * x
// away, the products of x would lose the digits that are left. Compiled once for each instruction set by foreach_isa.h,
// inside a namespace: no include guard.

#include "common/vector_simd.h"
// They build on it.
#include "common/channel_tiles_simd.h"
#include "common/units_simd.h"
// They build on those.
#include "common/amx_tiles_simd.h"
#include "common/vector_product_simd.h"
// It builds on the tiles.
#include "common/amx_strips_simd.h"
// It builds on the strips.
#include "common/amx_product_simd.h"

// The sums over the rows of the weight: what beta, the same in every token, is multiplied by.
template <typename scalar_t>
Scratch<acc_type<scalar_t>> weight_row_sums(const AffineLinear<scalar_t>& m) {
  using acc_t = acc_type<scalar_t>;
  const int64_t width = whole_vectors<acc_t>(m.tokens);
  Scratch<acc_t> sums(m.tokens);
  at::parallel_for(0, m.tokens, rows_per_task(m.tokens), [&](int64_t begin, int64_t end) {
    Scratch<acc_t> row(width);
    for (int64_t token = begin; token < end; ++token) {
      load_row(m.weight + token * m.tokens, 1, m.tokens, row.get());
      std::fill(row.get() + m.tokens, row.get() + width, acc_t(0));
      sums.get()[token] = sum_vectors<acc_t>(width, [&](int64_t i) { return load(row.get() + i); });
    }
  });
  return sums;
}

// Rows of alpha * x + beta.
template <typename scalar_t>
struct AffineRows {
  TensorRows<scalar_t> x;
  const acc_type<scalar_t>*alpha, *beta;

  Vector<acc_type<scalar_t>> operator()(int64_t r, int64_t c) const {
    return x(r, c) * load(alpha + c) + load(beta + c);
  }
};

// Parallel over tiles. y = x + layer_scale * (weight (alpha * x + beta) + bias), or
// y = x + scale * (weight x) + shift * rowsum(weight) + layer_scale * bias.
template <typename scalar_t, typename Product = VectorProduct<scalar_t>>
void affine_token_linear_forward(const AffineLinear<scalar_t>& m, const Rows<scalar_t>& y) {
  using acc_t = acc_type<scalar_t>;
  using vec = Vector<acc_t>;
  if (!Product::pays(m.batch * m.channels)) return affine_token_linear_forward<scalar_t>(m, y);
  const Tiling tiles(m.batch, m.channels, Product::kColumns);
  const typename Product::Left weight(m.weight, m.tokens, m.tokens);
  constexpr bool kFolded = sizeof(scalar_t) == 2;
  const Scratch<acc_t> row_sums = kFolded ? weight_row_sums(m) : Scratch<acc_t>(0);

  const bool streamed = is_streamed(y, m.batch * m.tokens * m.channels, m.channels);
  at::parallel_for(0, tiles.tasks(), 1, [&](int64_t begin, int64_t end) {
    const typename Product::Session session{};
    typename Product::Right panel(m.tokens, tiles.columns);
    Scratch<acc_t> block(Product::kTileRows * tiles.columns);
    // Rows that are not whole vectors.
    Scratch<scalar_t> copies(Product::kTileRows * tiles.columns);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = Tile::of<acc_t>(tiles, index);
      for_row_blocks<Product>(m.tokens, [&](int64_t token, int64_t rows) {
        const TensorRows<scalar_t> x = view_rows(m.x, tile, token, rows, copies.get());
        if constexpr (kFolded) {
          panel.pack(x, tile.width, token, rows);
        } else {
          panel.pack(AffineRows<scalar_t>{x, m.alpha + tile.first, m.beta + tile.first}, tile.width, token, rows);
        }
      });
      for_row_blocks<Product>(m.tokens, [&](int64_t token, int64_t rows) {
        session.multiply(rows, tile.width, m.tokens, weight.from(token), panel, false, block.get(), tile.width);
        for (int64_t r = 0; r < rows; ++r) {
          const acc_t row_sum = kFolded ? row_sums.get()[token + r] : acc_t(0), bias = m.bias[token + r];
          const acc_t* const product = block.get() + r * tile.width;
          map_row(m.x, y, tile, token + r, copies.get(), streamed, [&](int64_t i, vec x) {
            const int64_t channel = tile.first + i;
            const vec layer_scale = load(m.layer_scale + channel);
            if constexpr (kFolded) {
              const vec constant = load(m.shift + channel) * row_sum + layer_scale * bias;
              return x + (load(product + i) * load(m.scale + channel) + constant);
            } else {
              return x + layer_scale * (load(product + i) + bias);
            }
          });
        }
      });
    }
    if (streamed) end_of_stream();
  });
}

// What one part of the tasks adds to the gradients of the parameters. There is room for more rows of the matrix, as
// products write.
template <typename scalar_t>
struct ParameterGradients {
  using acc_t = acc_type<scalar_t>;
  int64_t ld, width, size;
  Scratch<acc_t> all;
  acc_t *weight, *bias, *channel_sums;  // (S, ld), (S), (3, width)

  explicit ParameterGradients(const AffineLinear<scalar_t>& m)
      : ld(whole_vectors<acc_t>(m.tokens)),
        width(whole_vectors<acc_t>(m.channels)),
        size(whole_strips(m.tokens) * ld + m.tokens + 3 * width),
        all(size),
        weight(all.get()),
        bias(weight + whole_strips(m.tokens) * ld),
        channel_sums(bias + m.tokens) {}
};

// Everything that one tile gives: dx, and its share of the gradients of the parameters.
template <typename scalar_t, typename Product>
class BackwardTile {
 public:
  using acc_t = acc_type<scalar_t>;

  BackwardTile(const AffineLinear<scalar_t>& m, const Rows<const scalar_t>& dy, const Rows<scalar_t>& dx,
               const typename Product::Left& transposed, const acc_t* row_sums, int64_t columns)
      : m_(m),
        dy_(dy),
        dx_(dx),
        transposed_(transposed),
        row_sums_(row_sums),
        dy_matrix_(m.tokens, columns),
        inner_(m.tokens, columns),
        turned_(columns, whole_vectors<acc_t>(m.tokens)),
        dy_block_(Product::kTileRows * columns),
        x_(Product::kTileRows * columns),
        u_(Product::kTileRows * columns) {}

  // The first tile overwrites the gradients, the others add to them.
  void run(const Tile& tile, bool first, ParameterGradients<scalar_t>& gradients) {
    if (first) std::fill_n(gradients.bias, m_.tokens + 3 * gradients.width, acc_t(0));
    for_row_blocks<Product>(m_.tokens,
                            [&](int64_t token, int64_t rows) { load_dy(tile, token, rows, gradients.bias + token); });
    for_row_blocks<Product>(m_.tokens,
                            [&](int64_t token, int64_t rows) { backpropagate(tile, token, rows, gradients); });
    turned_.set_transposed(inner_.left(), m_.tokens, tile.width);
    session_.multiply(m_.tokens, gradients.ld, tile.width, dy_matrix_.left(), turned_, !first, gradients.weight,
                      gradients.ld);
  }

 private:
  using vec = Vector<acc_t>;

  void load_dy(const Tile& tile, int64_t token, int64_t rows, acc_t* dbias) {
    load_rows(dy_, tile, token, rows, dy_block_.get());
    dy_matrix_.store(RowBlock<acc_t>{dy_block_.get(), tile.width}, tile.width, token, rows);
    for (int64_t r = 0; r < rows; ++r) {
      dbias[r] += sum_vectors<acc_t>(tile.width, [&](int64_t i) {
        return load(m_.layer_scale + tile.first + i) * load(dy_block_.get() + r * tile.width + i);
      });
    }
  }

  // With U = weight^T dy: dx = dy + scale * U, and the sums over these rows. The other factor of dweight, beside dy, is
  // scale * x + shift: dy itself, which may have few digits to lose, stays as it is.
  void backpropagate(const Tile& tile, int64_t token, int64_t rows, ParameterGradients<scalar_t>& gradients) {
    acc_t *dy = dy_block_.get(), *x = x_.get(), *u = u_.get();
    session_.multiply(rows, tile.width, m_.tokens, transposed_.from(token), dy_matrix_.right(), false, u, tile.width);
    load_rows(dy_, tile, token, rows, dy);
    load_rows(m_.x, tile, token, rows, x);
    for (int64_t i = 0; i < tile.width; i += kLanes<acc_t>) {
      const int64_t channel = tile.first + i;
      const vec scale = load(m_.scale + channel), shift = load(m_.shift + channel);
      vec xu{}, dy_rowsum{}, dy_bias{};
      for (int64_t r = 0, at = i; r < rows; ++r, at += tile.width) {
        const vec dy_here = load(dy + at), x_here = load(x + at), u_here = load(u + at);
        xu += x_here * u_here;
        dy_rowsum += dy_here * row_sums_[token + r];
        dy_bias += dy_here * m_.bias[token + r];
        store(dy + at, dy_here + u_here * scale);
        store(x + at, x_here * scale + shift);
      }
      acc_t* sums = gradients.channel_sums + channel;
      for (const vec& sum : {xu, dy_rowsum, dy_bias}) {
        store(sums, load(sums) + sum);
        sums += gradients.width;
      }
    }
    store_rows(dy, dx_, tile, token, rows);
    inner_.store(RowBlock<acc_t>{x, tile.width}, tile.width, token, rows);
  }

  const AffineLinear<scalar_t>& m_;
  const Rows<const scalar_t>& dy_;
  const Rows<scalar_t>& dx_;
  const typename Product::Left& transposed_;
  const acc_t* row_sums_;
  typename Product::Session session_;
  typename Product::TileMatrix dy_matrix_;
  typename Product::TileRows inner_;
  typename Product::Right turned_;
  Scratch<acc_t> dy_block_, x_, u_;
};

// Parallel over fixed parts of the tiles, each with its own sums.
template <typename scalar_t, typename Product = VectorProduct<scalar_t>>
void affine_token_linear_backward(const AffineLinear<scalar_t>& m, const Rows<const scalar_t>& dy,
                                  const Gradients<scalar_t>& out) {
  using acc_t = acc_type<scalar_t>;
  using Part = ParameterGradients<scalar_t>;
  if (!Product::pays(m.batch * m.channels)) return affine_token_linear_backward<scalar_t>(m, dy, out);
  const auto transposed = Product::Left::transposed(m.weight, m.tokens, m.tokens);
  const Scratch<acc_t> row_sums = weight_row_sums(m);

  const Tiling tiles(m.batch, m.channels, kGradientColumns);
  const int64_t tasks = tiles.tasks();
  std::vector<Part> parts;
  for (int64_t part = 0; part < std::min<int64_t>(tasks, at::get_num_threads()); ++part) parts.emplace_back(m);
  in_parts(tasks, parts.size(), [&](int64_t part, int64_t begin, int64_t end) {
    BackwardTile<scalar_t, Product> tile(m, dy, out.dx, transposed, row_sums.get(), tiles.columns);
    sum_tasks(
        begin, end, parts[part], [&] { return Part(m); },
        [&](int64_t index, bool first, Part& sums) { tile.run(Tile::of<acc_t>(tiles, index), first, sums); });
  });
  sum_parts(parts, &Part::weight, m.tokens, m.tokens, parts[0].ld, out.dweight);
  sum_parts(parts, &Part::bias, 1, m.tokens, 0, out.dbias);
  for (size_t part = 1; part < parts.size(); ++part) {
    for (int64_t i = 0; i < 3 * parts[0].width; ++i) parts[0].channel_sums[i] += parts[part].channel_sums[i];
  }
  for (int64_t sum = 0; sum < 3; ++sum) {
    std::copy_n(parts[0].channel_sums + sum * parts[0].width, m.channels, out.channel_sums + sum * m.channels);
  }
}
