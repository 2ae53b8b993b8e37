// The standard normal distribution function in pieces, from tables that vectors look up.
#pragma once

namespace mixer_kernels {

constexpr double normal_cdf(double x) {
  double term = x, sum = 0.0;
  for (int n = 0; n < 100; ++n) {
    sum += term / (2 * n + 1);
    term *= -x * x / (2 * n + 2);
  }
  return 0.5 + 0.39894228040143267794 * sum;
}

// Pieces k = -15 ... 15 reach from (k - 1/2) kWidth to (k + 1/2) kWidth; the outermost two are 0 and 1, and hold for
// everything beyond. Piece k stands in column k mod 32. With two powers it is a polynomial of z and within 5e-5, with
// five one of z / kWidth - k and within 1e-8.
template <int kPowers>
struct NormalCdfPieces {
  static_assert(kPowers == 2 || kPowers == 5);
  static constexpr int kLast = 15;
  static constexpr double kWidth = kPowers == 2 ? 0.2724 : 0.3736;

  float powers[kPowers + 1][32] = {};

  constexpr NormalCdfPieces() {
    for (int k = 1 - kLast; k < kLast; ++k) interpolate(k);
    powers[0][kLast] = 1.0f;
  }

 private:
  // Through the function at Chebyshev nodes, by divided differences.
  constexpr void interpolate(int k) {
    constexpr double kNodes[6] = {-0.96592582628906829, -0.70710678118654752, -0.25881904510252076,
                                  0.25881904510252076,  0.70710678118654752,  0.96592582628906829};
    constexpr double kThreeNodes[3] = {-0.86602540378443865, 0.0, 0.86602540378443865};
    double at[kPowers + 1] = {}, difference[kPowers + 1] = {}, sum[kPowers + 1] = {};
    for (int i = 0; i <= kPowers; ++i) {
      const double t = (kPowers == 2 ? kThreeNodes[i % 3] : kNodes[i]) / 2;
      at[i] = kPowers == 2 ? (k + t) * kWidth : t;
      difference[i] = normal_cdf((k + t) * kWidth);
    }
    for (int order = 1; order <= kPowers; ++order) {
      for (int i = kPowers; i >= order; --i) {
        difference[i] = (difference[i] - difference[i - 1]) / (at[i] - at[i - order]);
      }
    }
    for (int i = kPowers; i >= 0; --i) {
      for (int power = kPowers; power > 0; --power) sum[power] = sum[power - 1] - at[i] * sum[power];
      sum[0] = difference[i] - at[i] * sum[0];
    }
    for (int power = 0; power <= kPowers; ++power) powers[power][k & 31] = static_cast<float>(sum[power]);
  }
};

template <int kPowers>
inline constexpr NormalCdfPieces<kPowers> kNormalCdfPieces{};

}  // namespace mixer_kernels
