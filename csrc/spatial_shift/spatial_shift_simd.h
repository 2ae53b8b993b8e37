// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include, no include guard.

// Copies `runs` runs of `bytes` bytes in vectors of kBytes. The last vector of a run overlaps the one before it instead
// of leaving a scalar tail; it writes the same values again, because a run and its target never overlap.
// `ahead` leads to the run that the walk reads one step later: the runs of a group lie a whole pixel apart, a pattern
// that hardware prefetchers miss (in place, prefetching is worth a factor of three).
template <int kBytes>
inline void copy_byte_runs(const char* in, char* out, int64_t runs, int64_t in_step, int64_t out_step, int64_t bytes,
                           int64_t ahead) {
  typedef char vector_t __attribute__((vector_size(kBytes), aligned(1), may_alias));
  const int64_t last = bytes - kBytes;
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t i = 0; i < last; i += kBytes) {
      __builtin_prefetch(in + ahead + i);
      __builtin_prefetch(out + ahead + i, 1);
      *reinterpret_cast<vector_t*>(out + i) = *reinterpret_cast<const vector_t*>(in + i);
    }
    __builtin_prefetch(in + ahead + last);
    __builtin_prefetch(out + ahead + last, 1);
    *reinterpret_cast<vector_t*>(out + last) = *reinterpret_cast<const vector_t*>(in + last);
    in += in_step;
    out += out_step;
  }
}

// Copies run by run, in this order: in[r * in_step + i] to out[r * out_step + i], i over `element`.
template <typename scalar_t>
void copy_runs(const scalar_t* in, scalar_t* out, int64_t runs, int64_t in_step, int64_t out_step, const Axis& element,
               int64_t ahead) {
  constexpr int64_t kSize = sizeof(scalar_t);
  constexpr int kNarrowBytes = 16;
  const int64_t bytes = element.size * kSize;
  if (element.in == 1 && element.out == 1 && bytes >= kNarrowBytes) {
    const auto copy = bytes >= kVectorBytes ? copy_byte_runs<kVectorBytes> : copy_byte_runs<kNarrowBytes>;
    return copy(reinterpret_cast<const char*>(in), reinterpret_cast<char*>(out), runs, in_step * kSize,
                out_step * kSize, bytes, ahead * kSize);
  }
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      out[r * out_step + i * element.out] = in[r * in_step + i * element.in];
    }
  }
}

// out = border + moved: the two contributions that meet at one border in the adjoint; the other border gets none.
template <typename scalar_t>
void add_runs(const scalar_t* border, const scalar_t* moved, scalar_t* out, const Axis& run, const Axis& element) {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  for (int64_t r = 0; r < run.size; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      const int64_t from = r * run.in + i * element.in;
      const acc_t sum = static_cast<acc_t>(border[from]) + static_cast<acc_t>(moved[from]);
      out[r * run.out + i * element.out] = static_cast<scalar_t>(sum);
    }
  }
}

template <typename scalar_t>
void zero_runs(scalar_t* out, const Axis& run, const Axis& element) {
  for (int64_t r = 0; r < run.size; ++r) {
    for (int64_t i = 0; i < element.size; ++i) {
      out[r * run.out + i * element.out] = scalar_t(0);
    }
  }
}

// The moving axis outermost: a whole row of runs a step. In place, rows go in the order that reads before it writes.
template <typename scalar_t>
void shift_rows(const scalar_t* in, scalar_t* out, const Axis& row, const Axis& run, const Axis& element,
                bool adjoint) {
  const int64_t last = row.size - 1;
  const auto copy_row = [&](int64_t to, int64_t from) {
    copy_runs(in + from * row.in, out + to * row.out, run.size, run.in, run.out, element, (from - to) * row.in);
  };
  if (!adjoint || last == 0) {
    for (int64_t to = last; to > 0; --to) copy_row(to, to - 1);
    if (in != out) copy_row(0, 0);
    return;
  }
  add_runs(in, in + row.in, out, run, element);
  for (int64_t to = 1; to < last; ++to) copy_row(to, to + 1);
  zero_runs(out + last * row.out, run, element);
}

// The moving axis inside: line by line, the runs of a line in the safe order, prefetching the next line.
template <typename scalar_t>
void shift_lines(const scalar_t* in, scalar_t* out, const Axis& row, const Axis& run, const Axis& element,
                 bool adjoint) {
  const int64_t last = row.size - 1;
  const Axis one{1, 0, 0};
  for (int64_t r = 0; r < run.size; ++r, in += run.in, out += run.out) {
    if (!adjoint || last == 0) {
      copy_runs(in + (last - 1) * row.in, out + last * row.out, last, -row.in, -row.out, element, run.in);
      if (in != out) copy_runs(in, out, 1, 0, 0, element, run.in);
    } else {
      add_runs(in, in + row.in, out, one, element);
      copy_runs(in + 2 * row.in, out + row.out, last - 1, row.in, row.out, element, run.in);
      zero_runs(out + last * row.out, one, element);
    }
  }
}

// Shifts a block one step towards larger rows; in == out is allowed.
template <typename scalar_t>
void shift_block(const scalar_t* in, scalar_t* out, const ShiftBlock& block) {
  const int64_t row_stride = block.row.in < 0 ? -block.row.in : block.row.in;
  const auto shift = block.run.in > row_stride ? shift_lines<scalar_t> : shift_rows<scalar_t>;
  shift(in, out, block.row, block.run, block.element, block.adjoint);
}
