// Tensors of tokens, and parameters of the channels, as the CPU kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/arguments.h"
#include "common/scratch.h"

namespace mixer_kernels {

template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename scalar_t>
scalar_t* elements_of(const at::Tensor& t) {
  if constexpr (std::is_const_v<scalar_t>) {
    return t.const_data_ptr<std::remove_const_t<scalar_t>>();
  } else {
    return t.mutable_data_ptr<scalar_t>();
  }
}

// A (B, rows, columns) tensor.
template <typename scalar_t>
struct Rows {
  scalar_t* data;
  int64_t image_step, row_step, column_step;

  explicit Rows(const at::Tensor& t)
      : data(elements_of<scalar_t>(t)), image_step(t.stride(0)), row_step(t.stride(1)), column_step(t.stride(2)) {}

  template <typename other_t>
  explicit Rows(const Rows<other_t>& other)
      : data(other.data), image_step(other.image_step), row_step(other.row_step), column_step(other.column_step) {}

  scalar_t* row(int64_t image, int64_t index) const { return data + image * image_step + index * row_step; }
};

// A parameter as accumulators, with zeros behind them up to whole vectors; of an absent one every element is `absent`.
template <typename scalar_t>
Scratch<acc_of<scalar_t>> padded_parameter(const OptionalTensor& parameter, int64_t size, acc_of<scalar_t> absent) {
  using acc_t = acc_of<scalar_t>;
  constexpr int64_t kWidestVector = 16;
  Scratch<acc_t> padded(size + kWidestVector);
  acc_t* const to = padded.get();
  if (!parameter) {
    std::fill_n(to, size, absent);
  } else if (const at::Tensor whole = parameter->contiguous(); whole.scalar_type() == at::kFloat) {
    std::copy_n(whole.const_data_ptr<float>(), size, to);
  } else {
    std::copy_n(whole.const_data_ptr<scalar_t>(), size, to);
  }
  std::fill_n(to + size, kWidestVector, acc_t(0));
  return padded;
}

}  // namespace mixer_kernels
