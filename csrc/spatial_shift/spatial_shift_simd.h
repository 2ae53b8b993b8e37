// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include, no include guard.

// Copies kBytes bytes: a cache line, or a narrow vector.
template <int kBytes>
inline void copy_chunk(const char* in, char* out) {
  constexpr int kWidth = std::min(kBytes, kVectorBytes);
  typedef char vector_t __attribute__((vector_size(kWidth), aligned(1), may_alias));
  for (int i = 0; i < kBytes; i += kWidth) {
    *reinterpret_cast<vector_t*>(out + i) = *reinterpret_cast<const vector_t*>(in + i);
  }
}

// Copies at least kBytes bytes in chunks of kBytes. The last chunk overlaps the one before it instead of leaving a
// tail; it writes the same values again, because source and target never overlap.
template <int kBytes>
inline void copy_chunks(const char* in, char* out, int64_t bytes) {
  const int64_t last = bytes - kBytes;
  for (int64_t i = 0; i < last; i += kBytes) copy_chunk<kBytes>(in + i, out + i);
  copy_chunk<kBytes>(in + last, out + last);
}

// Copies `runs` runs of `bytes` bytes as copy_chunks does. `ahead` leads to the source of the runs that the walk
// reaches one step later: the runs of a group lie a whole pixel apart, a pattern that hardware prefetchers miss.
template <int kBytes>
inline void copy_byte_runs(const char* in, char* out, int64_t runs, Step step, int64_t bytes, int64_t ahead) {
  const int64_t last = bytes - kBytes;
  const auto copy = [&](int64_t i) {
    __builtin_prefetch(in + ahead + i);
    copy_chunk<kBytes>(in + i, out + i);
  };
  for (int64_t r = 0; r < runs; ++r, in += step.in, out += step.out) {
    for (int64_t i = 0; i < last; i += kBytes) copy(i);
    copy(last);
  }
}

// Copies run by run, in this order; a run is the elements of the innermost axis.
template <typename scalar_t>
void copy_runs(const scalar_t* in, scalar_t* out, int64_t runs, Step step, const Axis& element, int64_t ahead) {
  constexpr int64_t kSize = sizeof(scalar_t);
  const int64_t bytes = element.size * kSize;
  if (element.step.in == 1 && element.step.out == 1 && bytes >= kNarrowBytes) {
    const auto copy = bytes >= kLineBytes ? copy_byte_runs<kLineBytes> : copy_byte_runs<kNarrowBytes>;
    return copy(reinterpret_cast<const char*>(in), reinterpret_cast<char*>(out), runs, step * kSize, bytes,
                ahead * kSize);
  }
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      out[r * step.out + i * element.step.out] = in[r * step.in + i * element.step.in];
    }
  }
}

// out = border + moved: the two contributions that meet at one border in the adjoint; the other border gets none.
template <typename scalar_t>
void add_runs(const scalar_t* border, const scalar_t* moved, scalar_t* out, const Axis& run, const Axis& element) {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  for (int64_t r = 0; r < run.size; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      const int64_t from = r * run.step.in + i * element.step.in;
      const acc_t sum = static_cast<acc_t>(border[from]) + static_cast<acc_t>(moved[from]);
      out[r * run.step.out + i * element.step.out] = static_cast<scalar_t>(sum);
    }
  }
}

template <typename scalar_t>
void zero_runs(scalar_t* out, const Axis& run, const Axis& element) {
  for (int64_t r = 0; r < run.size; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      out[r * run.step.out + i * element.step.out] = scalar_t(0);
    }
  }
}

// The moving axis outermost: a whole row of runs a step. In place, rows go in the order that reads before it writes.
template <typename scalar_t>
void shift_rows(const scalar_t* in, scalar_t* out, const ShiftBlock& block) {
  const Axis &row = block.row, &run = block.run, &element = block.element;
  const int64_t last = row.size - 1;
  const auto copy_row = [&](int64_t to, int64_t from) {
    const int64_t ahead = row.step.in * (from - to);
    copy_runs(in + from * row.step.in, out + to * row.step.out, run.size, run.step, element, ahead);
  };
  if (!block.adjoint || last == 0) {
    for (int64_t to = block.end - 1; to >= std::max<int64_t>(block.begin, 1); --to) copy_row(to, to - 1);
    if (block.begin == 0 && !block.in_place) copy_row(0, 0);
    return;
  }
  if (block.begin == 0) add_runs(in, in + row.step.in, out, run, element);
  for (int64_t to = std::max<int64_t>(block.begin, 1); to < std::min(block.end, last); ++to) copy_row(to, to + 1);
  if (block.end > last) zero_runs(out + last * row.step.out, run, element);
}

// The moving axis inside: line by line, the runs of a line in the safe order, prefetching the next line.
template <typename scalar_t>
void shift_lines(const scalar_t* in, scalar_t* out, const ShiftBlock& block) {
  const Axis &row = block.row, &run = block.run, &element = block.element;
  const int64_t last = row.size - 1;
  const int64_t ahead = run.step.in;
  const Axis one{1, {0, 0}};
  for (int64_t r = 0; r < run.size; ++r, in += run.step.in, out += run.step.out) {
    if (!block.adjoint || last == 0) {
      copy_runs(in + (last - 1) * row.step.in, out + last * row.step.out, last, row.step * -1, element, ahead);
      if (!block.in_place) copy_runs(in, out, 1, {0, 0}, element, ahead);
    } else {
      add_runs(in, in + row.step.in, out, one, element);
      copy_runs(in + 2 * row.step.in, out + row.step.out, last - 1, row.step, element, ahead);
      zero_runs(out + last * row.step.out, one, element);
    }
  }
}

// Shifts a block one step towards larger rows.
template <typename scalar_t>
void shift_block(const scalar_t* in, scalar_t* out, const ShiftBlock& block) {
  const bool whole = block.begin == 0 && block.end == block.row.size;
  const bool dense_lines = block.run.step.in > std::abs(block.row.step.in);
  (whole && dense_lines ? shift_lines<scalar_t> : shift_rows<scalar_t>)(in, out, block);
}

// Writes one row of target pixels, all groups of a pixel at once, so that the target streams through memory. Each group
// is pulled from the pixel `across` further on, or from the border pixel. Prefetches the target and the next source
// row.
template <int kBytes>
void pull_row(const char* in, char* out, int64_t width, Step pixel, int64_t next_row, const PulledGroup* groups,
              int64_t count) {
  constexpr int64_t kPixelsAhead = 4;
  const int64_t pixel_bytes = groups[count - 1].offset + groups[count - 1].bytes;
  const auto pull_pixel = [=](int64_t w, auto is_border) {
    for (int64_t i = 0; i < pixel_bytes; i += kLineBytes) {
      __builtin_prefetch(in + next_row + (w + kPixelsAhead) * pixel.in + i);
      __builtin_prefetch(out + (w + 2 * kPixelsAhead) * pixel.out + i, 1);
    }
    for (const PulledGroup* group = groups; group < groups + count; ++group) {
      int64_t from = w + group->across;
      if constexpr (is_border) from = from < 0 ? 0 : from < width ? from : width - 1;
      copy_chunks<kBytes>(in + group->source + from * pixel.in, out + w * pixel.out + group->offset, group->bytes);
    }
  };
  pull_pixel(0, std::true_type{});
  for (int64_t w = 1; w < width - 1; ++w) pull_pixel(w, std::false_type{});
  if (width > 1) pull_pixel(width - 1, std::true_type{});
}

// As pull_row, for groups of any width from kNarrowBytes on.
void pull_row_of(int64_t narrowest, const char* in, char* out, int64_t width, Step pixel, int64_t next_row,
                 const PulledGroup* groups, int64_t count) {
  const auto pull = narrowest >= kLineBytes ? pull_row<kLineBytes> : pull_row<kNarrowBytes>;
  pull(in, out, width, pixel, next_row, groups, count);
}
