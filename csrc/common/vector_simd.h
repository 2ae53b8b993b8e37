// Vectors of one register, and rows of tensors as rows of accumulators.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include, no include guard.

// What an element is computed in.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// Past the caches, so that a line that is overwritten as a whole is not read first. `to` is aligned to the vector; who
// streams calls end_of_stream() before others read.
template <typename T>
inline void stream(T* to, Vector<T> value) {
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
    return;
  } else if constexpr (kVectorBytes == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
    return;
  }
#endif
  store(to, value);
}

inline void end_of_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <typename T>
inline Vector<T> broadcast(T value) {
  // Compilers drop `- 0`, but not `+ 0`, which turns -0 into 0.
  return value - Vector<T>{};
}

// Keeps a vector, an address or a number in a register, its value unknown: compilers else load the vector again for
// each of its uses, hold an address for each offset from it, or compile a loop again for each value.
template <typename T>
inline void keep_in_register(T& value) {
#if defined(__x86_64__)
  if constexpr (std::is_scalar_v<T>) {
    asm("" : "+r"(value));
  } else {
    asm("" : "+v"(value));
  }
#endif
}

template <typename T>
inline T sum_lanes(Vector<T> v) {
  T sum = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

// The bits of 16-bit elements, each in the lower half of a lane.
template <typename half_t>
inline Vector<uint32_t> load_bits(const half_t* from) {
#if defined(__x86_64__)
  // Compilers make several instructions of the general form.
  if constexpr (kVectorBytes == 64) {
    return (Vector<uint32_t>)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  } else if constexpr (kVectorBytes == 32) {
    return (Vector<uint32_t>)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
#endif
  typedef uint16_t words __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const words*>(from), Vector<uint32_t>);
}

// kLanes elements as accumulators. Vectors of bfloat16 are the upper halves of floats.
template <typename scalar_t>
inline Vector<acc_type<scalar_t>> load_as_acc(const scalar_t* from) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    return (Vector<float>)(load_bits(from) << 16);
  } else if constexpr (std::is_same_v<scalar_t, c10::Half>) {
#if defined(__x86_64__)
    if constexpr (kVectorBytes == 64) {
      return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    } else if constexpr (kVectorBytes == 32) {
      return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
#endif
    Vector<float> value;
    for (int64_t i = 0; i < kLanes<float>; ++i) value[i] = from[i];
    return value;
  } else {
    return load(from);
  }
}

// Accumulators as kLanes elements, rounded to the nearest even.
template <typename scalar_t>
inline void store_acc(scalar_t* to, Vector<acc_type<scalar_t>> value) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
#if defined(__x86_64__)
    if constexpr (kHasBf16Dot) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
      return;
    }
#endif
    typedef uint16_t halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
    using words = Vector<uint32_t>;
    const words bits = (words)value;
    const words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const words nan = words{} + 0x7fc0;
    const words safe = value == value ? rounded : nan;
    *reinterpret_cast<halves*>(to) = __builtin_convertvector(safe, halves);
  } else if constexpr (std::is_same_v<scalar_t, c10::Half>) {
#if defined(__x86_64__)
    if constexpr (kVectorBytes == 64) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
      return;
    } else if constexpr (kVectorBytes == 32) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
    for (int64_t i = 0; i < kLanes<float>; ++i) to[i] = value[i];
  } else {
    store(to, value);
  }
}

// Accumulators as they are once they have been stored.
template <typename scalar_t>
inline Vector<acc_type<scalar_t>> rounded(Vector<acc_type<scalar_t>> value) {
  if constexpr (sizeof(scalar_t) == sizeof(acc_type<scalar_t>)) return value;
  scalar_t stored[kLanes<acc_type<scalar_t>>];
  store_acc(stored, value);
  return load_as_acc(stored);
}

// As store_acc, past the caches; `to` is aligned to as many elements.
template <typename scalar_t>
inline void stream_acc(scalar_t* to, Vector<acc_type<scalar_t>> value) {
  if constexpr (sizeof(scalar_t) == sizeof(acc_type<scalar_t>)) {
    stream(to, value);
    return;
  }
#if defined(__x86_64__)
  alignas(kVectorBytes / 2) scalar_t rounded[kLanes<acc_type<scalar_t>>];
  if constexpr (kVectorBytes == 64) {
    store_acc(rounded, value);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), *reinterpret_cast<const __m256i*>(rounded));
    return;
  } else if constexpr (kVectorBytes == 32) {
    store_acc(rounded, value);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), *reinterpret_cast<const __m128i*>(rounded));
    return;
  }
#endif
  store_acc(to, value);
}

// n elements of a tensor, `step` apart, as accumulators.
template <typename scalar_t>
void load_row(const scalar_t* from, int64_t step, int64_t n, acc_type<scalar_t>* to) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  int64_t i = 0;
  if (step == 1) {
    for (; i + lanes <= n; i += lanes) store(to + i, load_as_acc(from + i));
  }
  for (; i < n; ++i) to[i] = static_cast<acc_type<scalar_t>>(from[i * step]);
}

template <typename scalar_t>
void store_row(scalar_t* to, int64_t n, const acc_type<scalar_t>* from) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_acc(to + i, load(from + i));
  for (; i < n; ++i) to[i] = static_cast<scalar_t>(from[i]);
}

// The sum of f(i) over the vectors that begin at i = 0, lanes, 2 lanes, ... below n, in four independent chains.
template <typename T, typename F>
T sum_vectors(int64_t n, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  Vector<T> chains[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int c = 0; c < 4; ++c) chains[c] += f(i + c * lanes);
  }
  for (; i < n; i += lanes) chains[0] += f(i);
  return sum_lanes<T>((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

template <typename T>
constexpr int64_t whole_vectors(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}
