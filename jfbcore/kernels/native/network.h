// The value network's sweep, its way back and its parameter gradients; row-major tensors.
//
// Beside `jfbcore/kernels/saved_sweep.py`, which has the formulas.

#pragma once

#include <tuple>

#include "vectors.h"

namespace {

// Columns of what `network_forward` keeps of a row: tanh(a_0..d-1), x_1..d-1, q_0..d-2, A z.
struct Kept {
  int64_t width, layers, rank;
  int64_t slope(int64_t i) const { return i * width; }
  int64_t state(int64_t i) const { return (layers + 1 + i) * width; }
  int64_t pulled(int64_t i) const { return (2 * layers + 1 + i) * width; }
  int64_t projected() const { return (3 * layers + 1) * width; }
  int64_t size() const { return projected() + rank; }
};
// Columns of what `network_backward` leaves: those of (a_0, A z), of q_0..d-1, of a_1..d-1.
struct Bars {
  int64_t width, layers, rank;
  int64_t pulled(int64_t i) const { return width + rank + i * width; }
  int64_t layer(int64_t i) const { return width + rank + (layers + 1 + i) * width; }
  int64_t size() const { return width + rank + (2 * layers + 1) * width; }
};

std::tuple<Tensor, Tensor> network_forward(Tensor z, Tensor bias, Tensor to_opened, Tensor matrix,
                                           Tensor transposed, Tensor weights, Tensor biases,
                                           Tensor readout, Tensor linear, double step_) {
  const int64_t all = z.size(0), n = z.size(1), width = readout.size(0), layers = biases.size(0);
  const int64_t opened_size = to_opened.size(1), out = matrix.size(1);
  const Kept at{width, layers, opened_size - width};
  const float step = static_cast<float>(step_);
  Tensor p = empty(z, {all, out}), kept_tensor = empty(z, {all, at.size()});
  const int64_t row = at.size(), most = std::min(all, TOGETHER);
  std::vector<float> opened(most * opened_size), product(most * opened_size);
  const float *w = data(weights), *w_t = data(transposed), *r = data(readout);

  for (int64_t start = 0; start < all; start += most) {
    const int64_t rows = std::min(most, all - start);
    float* kept = mutable_data(kept_tensor) + start * row;

    multiply(rows, opened_size,
             {n, data(z) + start * n, n, 1, data(to_opened), opened_size, opened.data(),
              opened_size, data(bias), 0});
    for (int64_t i = 0; i < rows; i++) {
      float* k = kept + i * row;
      const float* a = opened.data() + i * opened_size;
      over(width, [&]<int L>(Math<L> m, int64_t j) {
        typename Math<L>::V slope, value;
        m.activation(m.load(a + j), &slope, layers ? &value : nullptr);
        m.store(k + at.slope(0) + j, slope);
        if (layers) m.store(k + at.state(0) + j, value);
      });
      std::copy(a + width, a + opened_size, k + at.projected());
      std::copy(a + width, a + opened_size, product.data() + i * opened_size + width);
    }
    for (int64_t l = 0; l < layers; l++) {
      multiply(rows, width,
               {width, kept + at.state(l), row, 1, w_t + l * width * width, width, opened.data(),
                width, data(biases) + l * width, 0});
      const bool last = l + 1 == layers;
      for (int64_t i = 0; i < rows; i++) {
        float* k = kept + i * row;
        const float* a = opened.data() + i * width;
        over(width, [&]<int L>(Math<L> m, int64_t j) {
          typename Math<L>::V slope, value;
          m.activation(m.load(a + j), &slope, last ? nullptr : &value);
          m.store(k + at.slope(l + 1) + j, slope);
          if (!last) m.store(k + at.state(l + 1) + j, m.load(k + at.state(l) + j) + step * value);
        });
      }
    }
    for (int64_t l = layers - 1; l >= 0; l--) {
      const bool first = l + 1 == layers;
      for (int64_t i = 0; i < rows; i++) {
        const float *s = kept + i * row + at.slope(l + 1),
                    *q = first ? r : kept + i * row + at.pulled(l + 1);
        float* t = opened.data() + i * width;
        over(width, [&]<int L>(Math<L> m, int64_t j) {
          m.store(t + j, step * m.load(s + j) * m.load(q + j));
        });
      }
      multiply(rows, width,
               {width, opened.data(), width, 1, w + l * width * width, width, kept + at.pulled(l),
                row, first ? r : kept + at.pulled(l + 1), first ? 0 : row});
    }
    for (int64_t i = 0; i < rows; i++) {
      const float *s = kept + i * row + at.slope(0),
                  *q = layers ? kept + i * row + at.pulled(0) : r;
      float* t = product.data() + i * opened_size;
      over(width,
           [&]<int L>(Math<L> m, int64_t j) { m.store(t + j, m.load(s + j) * m.load(q + j)); });
    }
    multiply(rows, out,
             {opened_size, product.data(), opened_size, 1, data(matrix), out,
              mutable_data(p) + start * out, out, data(linear), 0});
  }
  return {p, kept_tensor};
}

// `kept_tensor` is stacked over time steps (steps, rows, …); the one at `at_step` counts.
std::tuple<Tensor, Tensor> network_backward(Tensor kept_tensor, Tensor at_step, Tensor p_bar,
                                            Tensor onto, Tensor from_opened, Tensor to_bars,
                                            Tensor weights, Tensor transposed, Tensor readout,
                                            double step_) {
  const int64_t all = onto.size(0), n = onto.size(1), width = readout.size(0),
                layers = weights.size(0);
  const int64_t opened_size = from_opened.size(0), out = p_bar.size(1);
  const Kept at{width, layers, opened_size - width};
  const Bars to{width, layers, opened_size - width};
  const float step = static_cast<float>(step_);
  Tensor z_bar = empty(onto, {all, n}), bars_tensor = empty(onto, {all, to.size()});
  const float *r = data(readout), *w = data(weights), *w_t = data(transposed);
  const int64_t step_index = *static_cast<const int64_t*>(at_step.const_data_ptr());
  const int64_t row = at.size(), bar_row = to.size(), most = std::min(all, TOGETHER);
  std::vector<float> cotangents(most * width * (layers + 1)), state_bar(most * width);
  auto cotangent = [&](int64_t l) { return cotangents.data() + l * most * width; };

  for (int64_t start = 0; start < all; start += most) {
    const int64_t rows = std::min(most, all - start);
    const float* kept = data(kept_tensor) + (step_index * all + start) * row;
    float* bars = mutable_data(bars_tensor) + start * bar_row;

    multiply(rows, opened_size,
             {out, data(p_bar) + start * out, out, 1, data(to_bars), opened_size, bars, bar_row,
              nullptr, 0});
    for (int64_t i = 0; i < rows; i++) {
      const float *b = bars + i * bar_row, *s = kept + i * row + at.slope(0);
      float* q_bar = bars + i * bar_row + to.pulled(0);
      std::copy(b, b + width, cotangent(0) + i * width);
      over(width,
           [&]<int L>(Math<L> m, int64_t j) { m.store(q_bar + j, m.load(b + j) * m.load(s + j)); });
    }
    for (int64_t l = 0; l < layers; l++) {
      multiply(rows, width,
               {width, bars + to.pulled(l), bar_row, 1, w_t + l * width * width, width,
                cotangent(l + 1), width, nullptr, 0});
      for (int64_t i = 0; i < rows; i++) {
        float *c = cotangent(l + 1) + i * width, *b = bars + i * bar_row;
        const float* s = kept + i * row + at.slope(l + 1);
        over(width, [&]<int L>(Math<L> m, int64_t j) {
          m.store(b + to.pulled(l + 1) + j,
                  m.load(b + to.pulled(l) + j) + step * m.load(c + j) * m.load(s + j));
        });
      }
    }
    for (int64_t l = layers - 1; l >= -1; l--) {  // -1: the opening layer
      const bool innermost = l + 1 == layers;
      const float scale = l < 0 ? 1.0f : step;
      for (int64_t i = 0; i < rows; i++) {
        const float *s = kept + i * row + at.slope(l + 1), *c = cotangent(l + 1) + i * width;
        const float* q = innermost ? r : kept + i * row + at.pulled(l + 1);
        const float* x_bar = innermost ? nullptr : state_bar.data() + i * width;
        float* a_bar = bars + i * bar_row + (l < 0 ? 0 : to.layer(l));
        over(width, [&]<int L>(Math<L> m, int64_t j) {
          const auto slope = m.load(s + j);
          auto bar = scale * m.load(c + j) * m.load(q + j) * (1.0f - slope * slope);
          if (x_bar) bar += scale * m.load(x_bar + j) * slope;
          m.store(a_bar + j, bar);
        });
      }
      if (l < 0) break;
      multiply(rows, width,
               {width, bars + to.layer(l), bar_row, 1, w + l * width * width, width,
                state_bar.data(), width, innermost ? nullptr : state_bar.data(), width});
    }
    multiply(rows, n,
             {opened_size, bars, bar_row, 1, data(from_opened), n, mutable_data(z_bar) + start * n,
              n, data(onto) + start * n, n});
  }
  return {z_bar, bars_tensor};
}

// Over all rows of all time steps, of which `p_bar` and `bars_tensor` have the last one first:
// gradients of the opening matrix by way of the states (opened, n) and of the costates (opened,
// out), sums of the opening's cotangents over each time step's rows (steps, opened), of the
// readout, of the linear term (out,), weights and biases.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> network_gradients(
    Tensor z, Tensor p_bar, Tensor kept_tensor, Tensor bars_tensor, Tensor readout, int64_t layers,
    double step_) {
  const int64_t steps = z.size(0), batch = z.size(1), n = z.size(2), out = p_bar.size(2);
  const int64_t width = readout.size(0), rank = kept_tensor.size(2) - (3 * layers + 1) * width;
  const int64_t opened_size = width + rank;
  const Kept at{width, layers, rank};
  const Bars to{width, layers, rank};
  const float step = static_cast<float>(step_);
  const float *kept = data(kept_tensor), *bars = data(bars_tensor), *r = data(readout);
  const int64_t row = at.size(), bar_row = to.size();
  auto zeros = [&](std::vector<int64_t> shape) {
    Tensor x = empty(z, shape);
    std::fill_n(mutable_data(x), x.numel(), 0.0f);
    return x;
  };
  Tensor by_state = zeros({opened_size, n}), by_costate = zeros({opened_size, out});
  Tensor sums = zeros({steps, opened_size}), readout_bar = zeros({width}),
         linear_bar = zeros({out});
  Tensor weight_bars = zeros({layers, width, width}), bias_bars = zeros({layers, width});
  auto add = [](float* onto, const float* x, int64_t size) {
    for (int64_t j = 0; j < size; j++) onto[j] += x[j];
  };
  std::vector<float> scratch(TOGETHER * opened_size), partial((1 + layers) * width + out);
  for (int64_t at_step = 0; at_step < steps; at_step++)
    for (int64_t start = 0; start < batch; start += TOGETHER) {
      const int64_t rows = std::min(TOGETHER, batch - start), first = at_step * batch + start;
      const int64_t last_first = (steps - 1 - at_step) * batch + start;
      const float *k = kept + first * row, *b = bars + last_first * bar_row;
      const float *states = data(z) + first * n, *costate_bars = data(p_bar) + last_first * out;
      // Sums over these rows first: the error of one sum over all rows would grow with their
      // number.
      std::fill(partial.begin(), partial.end(), 0.0f);
      float *readout_part = partial.data(), *bias_part = readout_part + width,
            *linear_part = bias_part + layers * width;
      for (int64_t i = 0; i < rows; i++) {
        add(mutable_data(sums) + at_step * opened_size, b + i * bar_row, opened_size);
        add(readout_part, b + i * bar_row + to.pulled(layers), width);
        add(bias_part, b + i * bar_row + to.layer(0), layers * width);
        add(linear_part, costate_bars + i * out, out);
      }
      add(mutable_data(readout_bar), readout_part, width);
      add(mutable_data(bias_bars), bias_part, layers * width);
      add(mutable_data(linear_bar), linear_part, out);
      auto scaled = [&](int64_t slope, const float* q, int64_t q_row, float scale, int64_t size) {
        for (int64_t i = 0; i < rows; i++) {
          const float* s = k + i * row + slope;
          float* t = scratch.data() + i * size;
          over(width, [&]<int L>(Math<L> m, int64_t j) {
            m.store(t + j, scale * m.load(s + j) * m.load(q + i * q_row + j));
          });
        }
      };
      auto gather = [&](int64_t height, const float* a, int64_t a_row, const float* x,
                        int64_t x_row, int64_t size, float* sum) {
        multiply(height, size, {rows, a, 1, a_row, x, x_row, sum, size, sum, size});
      };
      for (int64_t l = 0; l < layers; l++) {
        float* weight_bar = mutable_data(weight_bars) + l * width * width;
        const bool last = l + 1 == layers;
        gather(width, b + to.layer(l), bar_row, k + at.state(l), row, width, weight_bar);
        scaled(at.slope(l + 1), last ? r : k + at.pulled(l + 1), last ? 0 : row, step, width);
        gather(width, scratch.data(), width, b + to.pulled(l), bar_row, width, weight_bar);
      }
      gather(opened_size, b, bar_row, states, n, n, mutable_data(by_state));
      scaled(at.slope(0), layers ? k + at.pulled(0) : r, layers ? row : 0, 1.0f, opened_size);
      for (int64_t i = 0; i < rows; i++)
        std::copy_n(k + i * row + at.projected(), rank, scratch.data() + i * opened_size + width);
      gather(opened_size, scratch.data(), opened_size, costate_bars, out, out,
             mutable_data(by_costate));
    }
  return {by_state, by_costate, sums, readout_bar, linear_bar, weight_bars, bias_bars};
}

}  // namespace
