// The tiles of a convolution with the columns of a plane in the lanes, and what follows it.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

// The sum over a tile of f(row, column), which gives that column and those behind it; sums of rows in float32, the rest
// in float64.
template <typename F>
double sum_plane(const TileOfMap& tile, const F& f) {
  constexpr int64_t lanes = kLanes<float>;
  double sum = 0;
  for (int64_t row = 0; row < tile.rows; ++row) {
    Vector<float> few{};
    int64_t i = 0;
    for (; i + lanes <= tile.columns; i += lanes) few += f(row, i);
    if (i < tile.columns) {
      const Vector<float> last = f(row, i);
      for (int64_t lane = 0; lane < tile.columns - i; ++lane) few[lane] += last[lane];
    }
    for (int64_t lane = 0; lane < lanes; ++lane) sum += few[lane];
  }
  return sum;
}

// Mean and sum of squared deviations of a tile.
inline void plane_moments(const float* values, int64_t pitch, const TileOfMap& tile, double* mean, double* deviations) {
  const double pixels = static_cast<double>(tile.rows * tile.columns);
  const auto value = [&](int64_t row, int64_t i) { return load_within<float>(values + row * pitch, i, pitch); };
  *mean = sum_plane(tile, value) / pixels;
  const Vector<float> center = broadcast(static_cast<float>(*mean));
  *deviations = sum_plane(tile, [&](int64_t row, int64_t i) {
    const Vector<float> apart = value(row, i) - center;
    return apart * apart;
  });
}

// The epilogue of a channel: the first `columns` of `rows` rows of whole vectors.
template <typename scalar_t>
void finish_rows(const Epilogue<scalar_t>& e, Activation activation, int64_t channel,
                 const PlaneRows<const scalar_t>& past, const PlaneRows<const float>& values, int64_t rows,
                 int64_t columns, const PlaneRows<scalar_t>& to) {
  using bits_t = bits_type<scalar_t>;
  constexpr int64_t lanes = kLanes<bits_t>, parts = lanes / kLanes<float>;
  // Rows without a gap are one.
  if (values.step == columns && to.step == columns && (past.data == nullptr || past.step == columns)) {
    columns *= rows;
    rows = 1;
  }
  // The bias last: a sum that begins with it is rounded at its size.
  const Vector<float> bias = broadcast(e.bias == nullptr ? 0.0f : e.bias[channel]);
  const Vector<float> scale = broadcast(e.scale[channel]), shift = broadcast(e.shift[channel]);
  with_activation<scalar_t, float>(activation, [&](const auto& act) {
    for (int64_t row = 0; row < rows; ++row) {
      const float* const from = values.row(row);
      const scalar_t* const residual = past.row(row);
      for (int64_t i = 0; i < columns; i += lanes) {
        Vector<float> v[parts];
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t at = i + part * kLanes<float>;
          v[part] = act(load(from + at) + bias) * scale + shift;
        }
        if (residual != nullptr) add_elements(residual + i, columns - i, v);
        const Vector<bits_t> bits = round_to_bits<scalar_t>(v);
        store_rows<1>(&bits, 1, 0, columns - i, reinterpret_cast<bits_t*>(to.row(row)) + i, 0);
      }
    }
  });
}

// Asks for the cache lines of rows that are written soon. Inlined: compilers else drop it, for it computes nothing.
template <typename T>
__attribute__((always_inline)) inline void ask_for_rows(const PlaneRows<T>& to, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; i += 64 / sizeof(T)) __builtin_prefetch(to.row(row) + i, 1, 2);
  }
}

// Parallel over tiles of planes, or of blocks of planes where the channels of the map are side by side.
template <typename scalar_t, typename Convolution>
void convolve_planes(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                     const Moments& moments) {
  using bits_t = bits_type<scalar_t>;
  const TileGrid grid = plane_grid(c);
  const bool across = y.column_step != 1;
  const Activation activation = moments.mean == nullptr ? e.activation : Activation::kNone;
  const bool direct = moments.mean == nullptr && !across && e.is_only_bias();
  const auto task_at = [&](int64_t index) { return across ? grid.by_image(index) : index; };
  at::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    Convolution convolution(c);
    // Rows of whole vectors of elements.
    const int64_t pitch = convolution.pitch(), plane = plane_step<bits_t>(convolution.rows() * pitch);
    const Scratch<float> values(plane);
    std::fill_n(values.get(), plane, 0.0f);
    const Scratch<bits_t> finished(across ? grid.block() * plane : 0);
    std::optional<PlaneWindows<scalar_t, bits_t>> residual;
    if (e.residual.data != nullptr && (across || e.residual.column_step != 1)) {
      residual.emplace(grid.block(), c.tile.h, 1, 0, pitch);
    }
    TileOfMap next = grid[task_at(begin)];
    for (int64_t index = begin; index < end; ++index) {
      const TileOfMap tile = next;
      next = grid[task_at(std::min(index + 1, end - 1))];
      convolution.inputs().fill_tile(tile);
      if (residual) residual->fill(e.residual, c.out, tile, tile.row, tile.column, tile.rows);
      for (int64_t of_tile = 0; of_tile < tile.channels; ++of_tile) {
        const int64_t channel = tile.channel + of_tile;
        const float bias = e.bias == nullptr ? 0 : e.bias[channel];
        const PlaneRows<scalar_t> to =
            across ? PlaneRows<scalar_t>{reinterpret_cast<scalar_t*>(finished.get()) + of_tile * plane, pitch}
                   : PlaneRows<scalar_t>{y.pixel(tile.image, channel, tile.row, tile.column), y.row_step};
        if constexpr (Convolution::kMakesElements) {
          if (direct && convolution.makes_elements(tile)) {
            convolution.run(tile, of_tile, to.data, to.step, next, bias);
            continue;
          }
        }
        if (!across) ask_for_rows(to, tile.rows, tile.columns);
        convolution.run(tile, of_tile, values.get(), pitch, next);
        PlaneRows<const scalar_t> past;
        if (residual) {
          past = {reinterpret_cast<const scalar_t*>(residual->window(of_tile, 0)), pitch};
        } else if (e.residual.data != nullptr) {
          past = {e.residual.pixel(tile.image, channel, tile.row, tile.column), e.residual.row_step};
        }
        finish_rows(e, activation, channel, past, {values.get(), pitch}, tile.rows, across ? pitch : tile.columns, to);
        if (moments.mean == nullptr) continue;
        activate_stored<scalar_t>(e.activation, values.get(), tile.rows * pitch, broadcast(bias));
        const int64_t at = task_at(index) * grid.block() + of_tile;
        plane_moments(values.get(), pitch, tile, moments.mean + at, moments.deviations + at);
      }
      if (across) store_across(finished.get(), plane, pitch, tile, y);
    }
  });
}
