// What follows a depthwise convolution, in pieces of rows that stay in the first-level cache as accumulators.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// Activations.
#include "common/math_simd.h"

// Elements [first, first + size) of a row; width is size in whole vectors.
struct Piece {
  int64_t row, first, size, width;
};

// A few vectors: what is added up in float32 is a short sum.
constexpr int64_t kLongestPiece = 16 * kLanes<float>;

// Calls f(piece) for the pieces of rows [begin, end).
template <typename acc_t, typename F>
void for_pieces(const Matrix& matrix, int64_t begin, int64_t end, const F& f) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < matrix.columns; first += kLongestPiece) {
      const int64_t size = std::min(kLongestPiece, matrix.columns - first);
      f(Piece{row, first, size, whole_vectors<acc_t>(size)});
    }
  }
}

// A parameter of the channels for elements from i of a piece on.
template <typename acc_t>
inline Vector<acc_t> parameter_at(const Matrix& matrix, const Piece& piece, const acc_t* parameter, int64_t i) {
  return matrix.channels_last ? load(parameter + piece.first + i) : broadcast(parameter[piece.row % matrix.channels]);
}

// A piece of a matrix, zeros behind it up to whole vectors.
template <typename scalar_t>
void load_piece(const Piece& piece, const MapRows<const scalar_t>& from, acc_type<scalar_t>* to) {
  load_row(from[piece.row] + piece.first, 1, piece.size, to);
  std::fill(to + piece.size, to + piece.width, acc_type<scalar_t>(0));
}

// Parallel over rows.
template <typename scalar_t>
void epilogue_forward(const EpilogueForward<scalar_t>& e) {
  using acc_t = acc_type<scalar_t>;
  at::parallel_for(0, e.matrix.rows, rows_per_task(e.matrix.columns), [&](int64_t begin, int64_t end) {
    const Scratch<acc_t> values(kLongestPiece), past(kLongestPiece);
    std::fill_n(past.get(), kLongestPiece, acc_t(0));
    for_pieces<acc_t>(e.matrix, begin, end, [&](const Piece& piece) {
      load_piece(piece, e.z, values.get());
      if (e.residual) load_piece(piece, e.residual, past.get());
      activate<scalar_t>(e.activation, BiasedRows<acc_t>{values.get(), nullptr, 1, piece.width});
      for (int64_t i = 0; i < piece.width; i += kLanes<acc_t>) {
        const Vector<acc_t> scale = parameter_at(e.matrix, piece, e.scale, i);
        const Vector<acc_t> shift = parameter_at(e.matrix, piece, e.shift, i);
        store(values.get() + i, load(past.get() + i) + (load(values.get() + i) * scale + shift));
      }
      store_row(e.y[piece.row] + piece.first, piece.size, values.get());
    });
  });
}

// Calls take(i, dy, dy * (act(z) - center)) for the vectors of a piece. dy, act: room for one.
template <typename scalar_t, typename F>
void for_products(const EpilogueSums<scalar_t>& e, const Piece& piece, acc_type<scalar_t>* dy, acc_type<scalar_t>* act,
                  const F& take) {
  using acc_t = acc_type<scalar_t>;
  load_piece(piece, e.dy, dy);
  load_piece(piece, e.z, act);
  activate<scalar_t>(e.activation, BiasedRows<acc_t>{act, nullptr, 1, piece.width});
  for (int64_t i = 0; i < piece.width; i += kLanes<acc_t>) {
    const Vector<acc_t> d = load(dy + i);
    take(i, d, d * (load(act + i) - parameter_at(e.matrix, piece, e.center, i)));
  }
}

// Parallel over rows; a row that is a plane of a channel has sums of its own, rows of pixels are added up in parts.
template <typename scalar_t>
void epilogue_sums(const EpilogueSums<scalar_t>& e) {
  using acc_t = acc_type<scalar_t>;
  const Matrix& matrix = e.matrix;
  const int64_t channels = matrix.channels;
  // Sums of a few rows in the accumulator's type, the rest in float64: long ones lose digits.
  constexpr int64_t kRowsPerSum = 16;
  const int64_t parts = matrix.channels_last
                            ? std::clamp<int64_t>(matrix.rows / rows_per_task(matrix.columns), 1, at::get_num_threads())
                            : matrix.rows / channels;
  const int64_t width = whole_vectors<acc_t>(channels);
  Scratch<double> sums(parts * 2 * width);
  std::fill_n(sums.get(), parts * 2 * width, 0.0);

  if (matrix.channels_last) {
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      const Scratch<acc_t> dy(kLongestPiece), act(kLongestPiece), few(2 * width);
      for (int64_t part = first; part < last; ++part) {
        double* const total = sums.get() + part * 2 * width;
        const int64_t end = (part + 1) * matrix.rows / parts;
        for (int64_t row = part * matrix.rows / parts; row < end; row += kRowsPerSum) {
          std::fill_n(few.get(), 2 * width, acc_t(0));
          for_pieces<acc_t>(matrix, row, std::min(row + kRowsPerSum, end), [&](const Piece& piece) {
            for_products(e, piece, dy.get(), act.get(), [&](int64_t i, Vector<acc_t> d, Vector<acc_t> product) {
              acc_t* const to = few.get() + piece.first + i;
              store(to, load(to) + d);
              store(to + width, load(to + width) + product);
            });
          });
          for (int64_t i = 0; i < 2 * width; ++i) total[i] += few.get()[i];
        }
      }
    });
  } else {
    at::parallel_for(0, matrix.rows, rows_per_task(matrix.columns), [&](int64_t begin, int64_t end) {
      const Scratch<acc_t> dy(kLongestPiece), act(kLongestPiece);
      for_pieces<acc_t>(matrix, begin, end, [&](const Piece& piece) {
        Vector<acc_t> sum_dy{}, sum_product{};
        for_products(e, piece, dy.get(), act.get(), [&](int64_t, Vector<acc_t> d, Vector<acc_t> product) {
          sum_dy += d;
          sum_product += product;
        });
        double* const to = sums.get() + piece.row / channels * 2 * width + piece.row % channels;
        for (int64_t lane = 0; lane < kLanes<acc_t>; ++lane) {
          to[0] += sum_dy[lane];
          to[width] += sum_product[lane];
        }
      });
    });
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    double total_dy = 0, total_product = 0;
    for (int64_t part = 0; part < parts; ++part) {
      total_dy += sums.get()[part * 2 * width + channel];
      total_product += sums.get()[(part * 2 + 1) * width + channel];
    }
    e.sum_dy[channel] = static_cast<acc_t>(total_dy);
    e.sum_dy_act[channel] = static_cast<acc_t>(total_product);
  }
}

// Parallel over rows.
template <typename scalar_t>
void epilogue_backward(const EpilogueBackward<scalar_t>& e) {
  using acc_t = acc_type<scalar_t>;
  at::parallel_for(0, e.matrix.rows, rows_per_task(e.matrix.columns), [&](int64_t begin, int64_t end) {
    const Scratch<acc_t> act(kLongestPiece), dy(kLongestPiece), slope(kLongestPiece);
    for_pieces<acc_t>(e.matrix, begin, end, [&](const Piece& piece) {
      load_piece(piece, e.z, act.get());
      load_piece(piece, e.dy, dy.get());
      std::fill_n(slope.get(), piece.width, acc_t(1));
      activate_backward<scalar_t>(e.activation, BiasedRows<acc_t>{act.get(), nullptr, 1, piece.width}, slope.get());
      for (int64_t i = 0; i < piece.width; i += kLanes<acc_t>) {
        Vector<acc_t> da = load(dy.get() + i) * parameter_at(e.matrix, piece, e.c0, i);
        if (e.of_statistics) {
          da += load(act.get() + i) * parameter_at(e.matrix, piece, e.c1, i) + parameter_at(e.matrix, piece, e.c2, i);
        }
        store(dy.get() + i, times_slope<acc_t>(da, load(slope.get() + i)));
      }
      store_row(e.dz[piece.row] + piece.first, piece.size, dy.get());
    });
  });
}
