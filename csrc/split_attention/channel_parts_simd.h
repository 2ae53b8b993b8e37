// Channels vector by vector, with those behind the last whole one.
// Compiled once for each instruction set by foreach_isa.h after vector_simd.h, inside a namespace.

// A whole vector of channels, or those behind the last one.
struct Whole {};
struct Rest {
  int64_t size;
};

template <typename scalar_t>
inline Vector<acc_type<scalar_t>> load_part(const scalar_t* from, Whole) {
  return load_as_acc(from);
}

template <typename scalar_t>
inline Vector<acc_type<scalar_t>> load_part(const scalar_t* from, Rest rest) {
  scalar_t padded[kLanes<acc_type<scalar_t>>] = {};
  std::copy_n(from, rest.size, padded);
  return load_as_acc(padded);
}

template <typename scalar_t>
inline void store_part(scalar_t* to, Vector<acc_type<scalar_t>> value, Whole) {
  store_acc(to, value);
}

template <typename scalar_t>
inline void store_part(scalar_t* to, Vector<acc_type<scalar_t>> value, Rest rest) {
  scalar_t padded[kLanes<acc_type<scalar_t>>];
  store_acc(padded, value);
  std::copy_n(padded, rest.size, to);
}

// streamed: past the caches; there is no rest then.
template <typename scalar_t>
inline void store_part(scalar_t* to, Vector<acc_type<scalar_t>> value, Whole whole, bool streamed) {
  streamed ? stream_acc(to, value) : store_part(to, value, whole);
}

template <typename scalar_t>
inline void store_part(scalar_t* to, Vector<acc_type<scalar_t>> value, Rest rest, bool) {
  store_part(to, value, rest);
}

// Calls f(i, part) for the vectors of n channels.
template <typename acc_t, typename F>
inline void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<acc_t> <= n; i += kLanes<acc_t>) f(i, Whole{});
  if (i < n) f(i, Rest{n - i});
}
