// Vector forms of the activations and their derivatives, accurate to float32; float64 goes lane by lane through libm.
// Compiled once for each instruction set by foreach_isa.h after vector_simd.h, inside a namespace.

// e^x as 2^n e^r with |r| <= ln 2 / 2, a polynomial that is off by 3e-9; below -87 zero, above 88 infinity.
inline Vector<float> exp(const Vector<float> any) {
  using vec = Vector<float>;
  using ints = Vector<int32_t>;
  vec x = any;
  x = x < -87.0f ? broadcast(-87.0f) : x;
  x = x > 88.0f ? broadcast(88.0f) : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
  const vec shifted = x * 1.44269504f + 12582912.0f;
  const vec n = shifted - 12582912.0f;
  // ln 2 in two parts: n times the first is exact.
  const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = r * 0.00138146127f + 0.00836870988f;
  p = p * r + 0.0416683874f;
  p = p * r + 0.166665207f;
  p = p * r + 0.499999935f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const vec low = any < -87.0f ? vec{} : (vec)((ints)p + ((ints)shifted << 23));
  // NaN, too, takes the latter.
  return any <= 88.0f ? low : any + std::numeric_limits<float>::infinity();
}

// The standard normal distribution function as 1/2 + z P(z^2) / Q(z^2), off by 1e-8 before rounding; from 5.544 on it
// is 0 or 1 in float32.
inline Vector<float> unrounded_normal_cdf(Vector<float> z) {
  using vec = Vector<float>;
  const vec square = z * z;
  vec p = square * 2.26501735e-8f + 6.29468249e-6f;
  p = p * square + 1.66398219e-4f;
  p = p * square + 4.66224543e-3f;
  p = p * square + 3.36577454e-2f;
  p = p * square + 3.98942274e-1f;
  vec q = square * 1.19032785e-6f + 7.26506850e-5f;
  q = q * square + 1.87103855e-3f;
  q = q * square + 2.85262550e-2f;
  q = q * square + 2.51033828e-1f;
  q = q * square + 1.0f;
  const vec inside = z * p / q + 0.5f;
  const vec low = z <= -5.544f ? vec{} : inside;
  return z >= 5.544f ? broadcast(1.0f) : low;
}

inline Vector<double> exp(Vector<double> x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

inline Vector<double> unrounded_normal_cdf(Vector<double> z) {
  for (int64_t i = 0; i < kLanes<double>; ++i) z[i] = std::erf(z[i] * 0.70710678118654752440) * 0.5 + 0.5;
  return z;
}

#if defined(MIXER_KERNELS_ISA_AMX)
// The standard normal distribution function from tables that fit into registers.
template <int kPowers>
inline Vector<float> look_up_normal_cdf(Vector<float> z) {
  using Pieces = NormalCdfPieces<kPowers>;
  constexpr auto& powers = kNormalCdfPieces<kPowers>.powers;
  // The smaller magnitude, with the sign of z.
  const auto inside = (Vector<float>)_mm512_range_ps((__m512)z, _mm512_set1_ps(Pieces::kLast * Pieces::kWidth), 0b0010);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
  const Vector<float> scaled = inside * float(1.0 / Pieces::kWidth), shifted = scaled + 12582912.0f;
  const Vector<float> t = kPowers == 2 ? inside : scaled - (shifted - 12582912.0f);
  const auto coefficient = [&](int power) {
    return (Vector<float>)_mm512_permutex2var_ps(_mm512_loadu_ps(powers[power]), (__m512i)shifted,
                                                 _mm512_loadu_ps(powers[power] + 16));
  };
  Vector<float> sum = coefficient(kPowers);
  for (int power = kPowers - 1; power >= 0; --power) sum = sum * t + coefficient(power);
  return sum;
}
#endif

// The standard normal distribution function. Where kRounded says that the result is rounded to 16 bits, within 5e-5,
// well below what those resolve, and without a division.
template <bool kRounded, typename T>
inline Vector<T> normal_cdf(Vector<T> z) {
#if defined(MIXER_KERNELS_ISA_AMX)
  if constexpr (std::is_same_v<T, float>) return look_up_normal_cdf<kRounded ? 2 : 5>(z);
#endif
  if constexpr (kRounded) {
    // An odd polynomial that reaches 0 and 1 at the bounds; any negative z, however large, is to be multiplied by 0.
    Vector<T> inside = z > 4.25f ? broadcast(4.25f) : z;
    inside = z < -4.25f ? broadcast(-4.25f) : inside;
    const Vector<T> square = inside * inside;
    constexpr float kCoefficients[] = {-4.539121e-09f,  1.9914127e-07f, -5.1522256e-06f, 8.8491215e-05f,
                                       -1.0788275e-03f, 9.7171878e-03f, -6.6186905e-02f, 3.9881745e-01f};
    Vector<T> sum = broadcast(4.586955e-11f);
    for (const float coefficient : kCoefficients) sum = sum * square + coefficient;
    const Vector<T> cdf = inside * sum + 0.5f;
    return z < -4.25f ? Vector<T>{} : cdf;
  } else {
    return unrounded_normal_cdf(z);
  }
}

// The tanh approximation of GELU puts (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) in the place of that function, with
// u = sqrt(2 / pi) (z + 0.044715 z^3). This is e^-2u.
template <typename T>
inline Vector<T> exp_minus_2u(Vector<T> z) {
  return exp(z * (z * z * T(0.044715) + T(1)) * T(-1.59576912160573071176));
}

// A block of rows of z that wait for the bias of their row, or none.
template <typename T>
struct BiasedRows {
  T* z;
  const T* bias;
  int64_t rows, width;  // a multiple of the lanes

  T bias_of(int64_t row) const { return bias == nullptr ? T(0) : bias[row]; }

  Vector<T> operator()(int64_t row, int64_t i) const { return load(z + row * width + i) + bias_of(row); }
};

template <typename T, typename F>
inline void map_vectors(const BiasedRows<T>& block, const F& act) {
  for (int64_t r = 0; r < block.rows; ++r) {
    T* const z = block.z + r * block.width;
    for (int64_t i = 0; i < block.width; i += kLanes<T>) store(z + i, act(block(r, i)));
  }
}

// Calls f with the activation of vectors, on their way to scalar_t.
template <typename scalar_t, typename T, typename F>
void with_activation(Activation activation, const F& f) {
  using vec = Vector<T>;
  constexpr bool kRounded = sizeof(scalar_t) == 2;
  switch (activation) {
    case Activation::kNone:
      return f([](vec v) { return v; });
    case Activation::kRelu:
      return f([](vec v) { return v < T(0) ? vec{} : v; });
    case Activation::kGelu:
      return f([](vec v) { return v * normal_cdf<kRounded, T>(v); });
    case Activation::kGeluTanh:
      return f([](vec v) { return v / (exp_minus_2u<T>(v) + T(1)); });
  }
}

// z = act(z + bias) of n elements, with z + bias as it is stored.
template <typename scalar_t, typename T>
void activate_stored(Activation activation, T* z, int64_t n, Vector<T> bias) {
  with_activation<scalar_t, T>(activation, [&](const auto& act) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(z + i, act(rounded<scalar_t>(load(z + i) + bias)));
  });
}

// z = act(z + bias), on its way to scalar_t.
template <typename scalar_t, typename T>
void activate(Activation activation, const BiasedRows<T>& block) {
  with_activation<scalar_t, T>(activation, [&](const auto& act) { map_vectors(block, act); });
}

// Calls f with what turns vectors into their activation and gives its slope there, both on their way to scalar_t.
template <typename scalar_t, typename T, typename F>
void with_activation_backward(Activation activation, const F& f) {
  using vec = Vector<T>;
  constexpr bool kRounded = sizeof(scalar_t) == 2;
  switch (activation) {
    case Activation::kNone:
      return f([](vec&) { return broadcast(T(1)); });
    case Activation::kRelu:
      return f([](vec& v) {
        const vec slope = v <= T(0) ? vec{} : broadcast(T(1));
        v = v < T(0) ? vec{} : v;
        return slope;
      });
    case Activation::kGelu:
      return f([](vec& v) {
        const vec cdf = normal_cdf<kRounded, T>(v);
        const vec slope = exp(v * v * T(-0.5)) * v * T(0.39894228040143267794) + cdf;
        v *= cdf;
        return slope;
      });
    case Activation::kGeluTanh:
      return f([](vec& v) {
        const vec e = exp_minus_2u<T>(v);
        const vec cdf = T(1) / (e + T(1));
        // 1 - cdf without cancellation; e may be infinite.
        const vec rest = cdf == T(0) ? broadcast(T(1)) : e * cdf;
        const vec slope_of_2u = v * v * T(0.21406444881780073) + T(1.59576912160573071176);
        v *= cdf;
        return rest * v * slope_of_2u + cdf;
      });
  }
}

// The gradient behind an activation's slope. Where that is 0 nothing passes, not even what is not finite.
template <typename T>
inline Vector<T> times_slope(Vector<T> gradient, Vector<T> slope) {
  return slope == T(0) ? Vector<T>{} : gradient * slope;
}

// dh *= act'(z + bias) and z = act(z + bias).
template <typename scalar_t, typename T>
void activate_backward(Activation activation, const BiasedRows<T>& block, T* dh) {
  with_activation_backward<scalar_t, T>(activation, [&](const auto& act) {
    for (int64_t r = 0; r < block.rows; ++r) {
      T* const z = block.z + r * block.width;
      T* const d = dh + r * block.width;
      for (int64_t i = 0; i < block.width; i += kLanes<T>) {
        Vector<T> v = block(r, i);
        store(d + i, times_slope<T>(load(d + i), act(v)));
        store(z + i, v);
      }
    }
  });
}
