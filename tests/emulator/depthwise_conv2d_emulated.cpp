// Runs the CUDA depthwise convolution and everything around it under the emulator:
//   depthwise_conv2d_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, sizes B C H W and H' W' of the output, kernel, stride, dilation, padding above
// and to the left, activation, whether bias, scale, shift, residual exist, whether scale and shift are float32, strides
// of x and its offset, strides of y and its offset, strides of the residual and its offset, multiprocessors, seed.
// INPUT holds the elements of x, weight, bias, scale, shift, residual and dz (of y's shape) of all problems in
// row-major order. OUTPUT holds those of y; z, mean and var of the activated values; dx + x, dweight, dbias (dz with
// y's strides); then, with dense maps in y's direction and at its offset, the epilogue's y; the sums of dz and of dz *
// (act(z) - shift); and (scale * dz + shift * act(z) + bias) * act'(z).
#include <sstream>
#include <string>
#include <vector>

#include "depthwise_conv2d/depthwise_conv2d_kernels.cuh"
#include "token_problem.h"

namespace {

using mixer_kernels::ChannelParameter;
using mixer_kernels::ConvolutionArguments;
using mixer_kernels::EpilogueArguments;
using mixer_kernels::Extent;
using mixer_kernels::MapView;
using mixer_kernels::WeightGradientArguments;
using token_problem::die;
using token_problem::EmulatorLaunch;
using token_problem::Memory;

// Where the elements of a (B, C, H, W) map lie.
struct Layout {
  int64_t batch, channels;
  Extent size;
  int64_t strides[4], offset;

  int64_t elements() const { return batch * channels * size.h * size.w; }
  template <typename F>
  void for_elements(F&& f) const {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t h = 0; h < size.h; ++h)
          for (int64_t w = 0; w < size.w; ++w) {
            f(offset + b * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]);
          }
  }
};

std::istream& operator>>(std::istream& words, Layout& layout) {
  for (int64_t& stride : layout.strides) words >> stride;
  return words >> layout.offset;
}

// A map in memory of exactly its size.
class MapMemory {
 public:
  MapMemory(const Layout& layout, int size) : layout_(layout), size_(size), memory_(size * extent(layout)) {}

  MapView view() {
    const auto& s = layout_.strides;
    return {memory_.data() + layout_.offset * size_, s[0], s[1], s[2], s[3]};
  }
  void read(std::istream& from) {
    layout_.for_elements([&](int64_t at) { from.read(memory_.data() + at * size_, size_); });
  }
  // Dies unless what lies between the elements is untouched. Memory that is mostly holes is not looked through.
  void write(std::ostream& to, const std::string& problem) {
    layout_.for_elements([&](int64_t at) { to.write(memory_.data() + at * size_, size_); });
    if (extent(layout_) > int64_t{1} << 28) return;
    std::vector<char> is_element(extent(layout_), 0);
    layout_.for_elements([&](int64_t at) { is_element[at] = 1; });
    for (size_t at = 0; at < is_element.size(); ++at) {
      for (int byte = 0; byte < size_ && !is_element[at]; ++byte) {
        if (memory_.data()[at * size_ + byte] != '\xff') die("written between the elements of an output", problem);
      }
    }
  }

 private:
  static int64_t extent(const Layout& l) {
    return l.offset + (l.batch - 1) * l.strides[0] + (l.channels - 1) * l.strides[1] + (l.size.h - 1) * l.strides[2] +
           (l.size.w - 1) * l.strides[3] + 1;
  }

  Layout layout_;
  int size_;
  Memory memory_;
};

Layout dense(const Layout& like, Extent size, bool channels_last) {
  const int64_t c = like.channels, pixels = size.h * size.w;
  if (channels_last) return {like.batch, c, size, {c * pixels, 1, c * size.w, c}, 0};
  return {like.batch, c, size, {c * pixels, pixels, size.w, 1}, 0};
}

void solve(const std::string& problem, std::istream& input, std::ostream& output) {
  std::istringstream words(problem);
  ConvolutionArguments a{};
  int type, activation;
  bool has_bias, has_scale, has_shift, has_residual;
  words >> type >> a.batch >> a.channels >> a.in.h >> a.in.w >> a.out.h >> a.out.w;
  auto& g = a.geometry;
  words >> g.kernel.h >> g.kernel.w >> g.stride.h >> g.stride.w >> g.dilation.h >> g.dilation.w;
  words >> g.padding.h >> g.padding.w >> activation >> has_bias >> has_scale >> has_shift >> has_residual;
  words >> a.scale.is_float >> a.shift.is_float;
  Layout x_layout{a.batch, a.channels, a.in, {}, 0}, y_layout{a.batch, a.channels, a.out, {}, 0};
  Layout residual_layout = y_layout;
  words >> x_layout >> y_layout >> residual_layout;
  EmulatorLaunch launch{};
  words >> a.multiprocessors >> launch.seed;
  if (!words) die("cannot read this problem", problem);
  a.type = static_cast<mixer_kernels::ElementType>(type);
  a.activation = static_cast<mixer_kernels::Activation>(activation);
  const int size = mixer_kernels::element_size(a.type);

  const auto parameter_bytes = [&](bool exists, bool is_float) { return exists * a.channels * (is_float ? 4 : size); };
  const int64_t taps = g.kernel.h * g.kernel.w;
  MapMemory x(x_layout, size), residual(residual_layout, size), dz(y_layout, size);
  Memory weight(a.channels * taps * size), bias(parameter_bytes(has_bias, false));
  Memory scale(parameter_bytes(has_scale, a.scale.is_float)), shift(parameter_bytes(has_shift, a.shift.is_float));
  x.read(input);
  weight.read(input);
  bias.read(input);
  scale.read(input);
  shift.read(input);
  residual.read(input);
  dz.read(input);
  if (!input) die("the input is too short", problem);

  const auto run = [&](auto make_call, auto&& run_call) {
    Memory workspace(make_call(nullptr).workspace_bytes());
    run_call(make_call(workspace.data()));
  };
  const auto convolve = [&](const ConvolutionArguments& arguments) {
    run([&](void* workspace) { return mixer_kernels::ConvolutionCall(arguments, workspace); },
        [&](const auto& call) { call.run(launch); });
  };
  a.x = x.view();
  a.weight = weight.data();
  a.bias = bias.data_or_null();
  a.scale.data = scale.data_or_null();
  a.shift.data = shift.data_or_null();
  if (has_residual) a.residual = residual.view();

  MapMemory y(y_layout, size);
  ConvolutionArguments forward = a;
  forward.y = y.view();
  convolve(forward);
  y.write(output, problem);

  MapMemory z(dense(y_layout, a.out, y_layout.strides[1] == 1), size);
  Memory mean(a.channels * 4), var(a.channels * 4);
  ConvolutionArguments statistics = a;
  statistics.scale = statistics.shift = {};
  statistics.residual = {};
  statistics.y = z.view();
  statistics.mean = reinterpret_cast<float*>(mean.data());
  statistics.var = reinterpret_cast<float*>(var.data());
  convolve(statistics);
  z.write(output, problem);
  mean.write(output);
  var.write(output);

  MapMemory dx(x_layout, size);
  ConvolutionArguments backward = a;
  backward.is_gradient = true;
  backward.x = dz.view();
  backward.in = a.out;
  backward.out = a.in;
  backward.bias = nullptr;
  backward.scale = backward.shift = {};
  backward.residual = x.view();
  backward.activation = mixer_kernels::Activation::kNone;
  backward.y = dx.view();
  convolve(backward);
  dx.write(output, problem);

  Memory dweight(a.channels * taps * size), dbias(a.channels * size);
  const WeightGradientArguments gradient{
      a.type,         a.batch,      a.channels,       a.in, a.out, g, x.view(), dz.view(),
      dweight.data(), dbias.data(), a.multiprocessors};
  run([&](void* workspace) { return mixer_kernels::TapGradientCall(gradient, workspace); },
      [&](const auto& call) { call.run(launch); });
  dweight.write(output);
  dbias.write(output);

  // The epilogue of dense maps.
  const bool channels_last = y_layout.strides[1] == 1;
  Layout map = dense(y_layout, a.out, channels_last);
  map.offset = y_layout.offset;
  std::stringstream elements;
  dz.write(elements, problem);
  residual.write(elements, problem);
  MapMemory dy(map, size), past(map, size), activated(map, size), gradients(map, size);
  dy.read(elements);
  past.read(elements);
  const EpilogueArguments e{a.type, a.batch, a.channels, a.out.h * a.out.w, channels_last, z.view().data, a.activation};
  mixer_kernels::run_epilogue_forward(e, a.scale, a.shift, has_residual ? past.view().data : nullptr,
                                      activated.view().data, launch);
  Memory sum_dy(a.channels * 4), sum_dy_act(a.channels * 4);
  run([&](void* workspace) { return mixer_kernels::EpilogueSumsCall(e, workspace); },
      [&](const auto& call) {
        call.run(dy.view().data, a.shift, reinterpret_cast<float*>(sum_dy.data()),
                 reinterpret_cast<float*>(sum_dy_act.data()), launch);
      });
  mixer_kernels::run_epilogue_backward(e, dy.view().data, a.scale, a.shift, {bias.data_or_null(), false},
                                       gradients.view().data, launch);
  activated.write(output, problem);
  sum_dy.write(output);
  sum_dy_act.write(output);
  gradients.write(output, problem);
}

}  // namespace

int main(int argc, char** argv) { token_problem::solve_all(argc, argv, solve); }
