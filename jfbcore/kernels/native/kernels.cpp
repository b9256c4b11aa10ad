// Operators for compiled rollouts on processors, in float32 and on one thread.
//
// Beside `jfbcore/kernels/interaction.py` (pairs) and `jfbcore/kernels/saved_sweep.py` (network_…),
// which have the formulas.

#include <torch/csrc/stable/library.h>

#include "network.h"

namespace {

// Q (batch,) and dQ/dx (batch, agents, dimension) of positions (batch, agents, dimension).
std::tuple<Tensor, Tensor> pairs(Tensor positions, double cutoff_squared) {
  using M = Math<LANES>;
  using V = M::V;
  using I = M::I;
  const int64_t batch = positions.size(0), agents = positions.size(1),
                dimension = positions.size(2);
  const int64_t padded = (agents + LANES - 1) / LANES * LANES;
  Tensor cost = empty(positions, {batch}), gradient = empty(positions, {batch, agents, dimension});
  std::vector<float> x(3 * padded, 0.0f), g(3 * padded);
  I lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  const float limit = static_cast<float>(cutoff_squared), half = 0.5f / static_cast<float>(agents);
  for (int64_t sample = 0; sample < batch; sample++) {
    const float* from = data(positions) + sample * agents * dimension;
    for (int64_t i = 0; i < agents; i++)
      for (int64_t d = 0; d < dimension; d++) x[d * padded + i] = from[i * dimension + d];
    std::fill(g.begin(), g.end(), 0.0f);
    V total{};
    for (int64_t i = 0; i + 1 < agents; i++) {
      const float xi = x[i], yi = x[padded + i], zi = x[2 * padded + i];
      V gx{}, gy{}, gz{};
      for (int64_t j = (i + 1) / LANES * LANES; j < agents; j += LANES) {
        const V dx = xi - M::load(&x[j]), dy = yi - M::load(&x[padded + j]),
                dz = zi - M::load(&x[2 * padded + j]);
        const V squared = dx * dx + dy * dy + dz * dz;
        const I index = lane + static_cast<int32_t>(j);
        const I counts = (squared < limit) & (index > static_cast<int32_t>(i)) &
                         (index < static_cast<int32_t>(agents));
        const auto [part, power] = M::exponential(counts ? -0.5f * squared : V{});
        const V k = counts ? part + power : V{};
        total += k;
        const V kx = k * dx, ky = k * dy, kz = k * dz;
        gx += kx, gy += ky, gz += kz;
        M::store(&g[j], M::load(&g[j]) + kx);
        M::store(&g[padded + j], M::load(&g[padded + j]) + ky);
        M::store(&g[2 * padded + j], M::load(&g[2 * padded + j]) + kz);
      }
      float sx = 0, sy = 0, sz = 0;
      for (int l = 0; l < LANES; l++) sx += gx[l], sy += gy[l], sz += gz[l];
      g[i] -= sx, g[padded + i] -= sy, g[2 * padded + i] -= sz;
    }
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += total[l];
    mutable_data(cost)[sample] = half * sum;
    float* to = mutable_data(gradient) + sample * agents * dimension;
    for (int64_t i = 0; i < agents; i++)
      for (int64_t d = 0; d < dimension; d++) to[i * dimension + d] = half * g[d * padded + i];
  }
  return {cost, gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jfbcore, m) {
  m.def(
      "network_forward(Tensor z, Tensor bias, Tensor to_opened, Tensor matrix, Tensor transposed, "
      "Tensor weights, "
      "Tensor biases, Tensor readout, Tensor linear, float step) -> (Tensor, Tensor)");
  m.def(
      "network_backward(Tensor kept, Tensor at_step, Tensor p_bar, Tensor onto, Tensor "
      "from_opened, Tensor to_bars, Tensor weights, "
      "Tensor transposed, Tensor readout, float step) -> (Tensor, Tensor)");
  m.def(
      "network_gradients(Tensor z, Tensor p_bar, Tensor kept, Tensor bars, Tensor readout, int "
      "layers, float step) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("pairs(Tensor positions, float cutoff_squared) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(jfbcore, CPU, m) {
  m.impl("network_forward", TORCH_BOX(&network_forward));
  m.impl("network_backward", TORCH_BOX(&network_backward));
  m.impl("network_gradients", TORCH_BOX(&network_gradients));
  m.impl("pairs", TORCH_BOX(&pairs));
}
