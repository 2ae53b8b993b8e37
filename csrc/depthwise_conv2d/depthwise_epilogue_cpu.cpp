// The CPU kernels of what follows a depthwise convolution.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/activation.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/rows.h"
#include "common/scratch.h"
#include "depthwise_conv2d/depthwise_epilogue.h"

namespace mixer_kernels {
namespace {

// Dense maps as matrices: in channels_last a row is a pixel and a column a channel; else a row is a channel of an image
// and a column a pixel of it.
struct Matrix {
  int64_t rows, columns, channels;
  bool channels_last;

  explicit Matrix(const at::Tensor& z)
      : channels(z.size(1)), channels_last(z.suggest_memory_format() == at::MemoryFormat::ChannelsLast) {
    columns = channels_last ? channels : z.size(2) * z.size(3);
    rows = z.numel() / columns;
  }
};

template <typename scalar_t>
struct EpilogueForward {
  Matrix matrix;
  const scalar_t *z, *residual;  // residual may be null
  const acc_of<scalar_t>*scale, *shift;
  Activation activation;
  scalar_t* y;
};

template <typename scalar_t>
struct EpilogueSums {
  Matrix matrix;
  const scalar_t *dy, *z;
  const acc_of<scalar_t>* center;
  Activation activation;
  acc_of<scalar_t>*sum_dy, *sum_dy_act;
};

template <typename scalar_t>
struct EpilogueBackward {
  Matrix matrix;
  const scalar_t *dy, *z;
  const acc_of<scalar_t>*c0, *c1, *c2;
  Activation activation;
  scalar_t* dz;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_FILE "depthwise_conv2d/depthwise_epilogue_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {

void CpuEpilogue::epilogue_forward(const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                                   const OptionalTensor& residual, int64_t activation, const at::Tensor& y) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), past = residual ? residual->contiguous(format) : at::Tensor();
    const auto scales = padded_parameter<scalar_t>(scale, z.size(1), 1);
    const auto shifts = padded_parameter<scalar_t>(shift, z.size(1), 0);
    select_isa(&baseline::epilogue_forward<scalar_t>, &avx2::epilogue_forward<scalar_t>,
               &avx512::epilogue_forward<scalar_t>)(
        {Matrix(z), dense.const_data_ptr<scalar_t>(), residual ? past.const_data_ptr<scalar_t>() : nullptr,
         scales.get(), shifts.get(), static_cast<Activation>(activation), y.mutable_data_ptr<scalar_t>()});
  });
}

void CpuEpilogue::epilogue_sums(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center,
                                int64_t activation, const at::Tensor& sum_dy, const at::Tensor& sum_dy_act) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_of<scalar_t>;
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), gradient = dy.contiguous(format);
    const auto centers = padded_parameter<scalar_t>(center, z.size(1), 0);
    select_isa(&baseline::epilogue_sums<scalar_t>, &avx2::epilogue_sums<scalar_t>, &avx512::epilogue_sums<scalar_t>)(
        {Matrix(z), gradient.const_data_ptr<scalar_t>(), dense.const_data_ptr<scalar_t>(), centers.get(),
         static_cast<Activation>(activation), sum_dy.mutable_data_ptr<acc_t>(), sum_dy_act.mutable_data_ptr<acc_t>()});
  });
}

void CpuEpilogue::epilogue_backward(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                    const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation,
                                    const at::Tensor& dz) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), gradient = dy.contiguous(format);
    const auto of_dy = padded_parameter<scalar_t>(c0, z.size(1), 1);
    const auto of_act = padded_parameter<scalar_t>(c1, z.size(1), 0);
    const auto constant = padded_parameter<scalar_t>(c2, z.size(1), 0);
    select_isa(&baseline::epilogue_backward<scalar_t>, &avx2::epilogue_backward<scalar_t>,
               &avx512::epilogue_backward<scalar_t>)(
        {Matrix(z), gradient.const_data_ptr<scalar_t>(), dense.const_data_ptr<scalar_t>(), of_dy.get(), of_act.get(),
         constant.get(), static_cast<Activation>(activation), dz.mutable_data_ptr<scalar_t>()});
  });
}

}  // namespace mixer_kernels
