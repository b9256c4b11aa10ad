// The value network's sweep and the interaction cost for compiled rollouts on processors, float32.
//
// Beside their formulas: `jfbcore/kernels/saved_sweep.py` (network_forward, network_backward,
// network_gradients) and `jfbcore/kernels/interaction.py` (pairs). One thread, row-major tensors.
// Matrix products are written here because the library behind torch.mm takes kernels of half the
// vector width on processors that are not its maker's.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

using torch::stable::Tensor;

namespace {

// ---------------------------------------------------------------- vectors
template <int L>
struct Vec {
  typedef float V __attribute__((vector_size(4 * L)));
  typedef int32_t I __attribute__((vector_size(4 * L)));
  typedef float Unaligned __attribute__((vector_size(4 * L), aligned(4), may_alias));
  static V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static void store(float* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
};

#if defined(__AVX512F__)
constexpr int LANES = 16, MOST_COLUMNS = 4, MOST_ACCUMULATORS = 24;
#elif defined(__AVX__)
constexpr int LANES = 8, MOST_COLUMNS = 2, MOST_ACCUMULATORS = 12;
#else
constexpr int LANES = 4, MOST_COLUMNS = 4, MOST_ACCUMULATORS = 24;
#endif
constexpr int MOST_ROWS = 8;
// Rows that go through the network at once: what they need stays in the processor's caches.
constexpr int64_t TOGETHER = 64;

// ---------------------------------------------------------------- products
struct Product {
  int64_t inner;
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  const float* initial;  // what is added to; null for nothing
  int64_t initial_row;
};

// ROWS rows and COLUMNS vectors of `c`, which begin at `columns`.
template <int L, int ROWS, int COLUMNS>
void tile(const Product& x, const int64_t* columns) {
  using F = Vec<L>;
  typename F::V sum[ROWS][COLUMNS] = {};
  const float* bases[COLUMNS];
  for (int j = 0; j < COLUMNS; j++) bases[j] = x.b + columns[j];
  for (int64_t k = 0; k < x.inner; k++) {
    typename F::V b[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) b[j] = F::load(bases[j] + k * x.b_row);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      const float a = x.a[i * x.a_row + k * x.a_column];
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) sum[i][j] += a * b[j];
    }
  }
  // Added last: where a product is added to a longer sum, its own terms are summed first.
  if (x.initial)
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) sum[i][j] += F::load(x.initial + i * x.initial_row + columns[j]);
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) F::store(x.c + i * x.c_row + columns[j], sum[i][j]);
}

template <int L, int COLUMNS>
void rows_of(int64_t rows, Product x, const int64_t* columns) {
  using Tile = void (*)(const Product&, const int64_t*);
  static const Tile tiles[MOST_ROWS] = {tile<L, 1, COLUMNS>, tile<L, 2, COLUMNS>, tile<L, 3, COLUMNS>,
                                        tile<L, 4, COLUMNS>, tile<L, 5, COLUMNS>, tile<L, 6, COLUMNS>,
                                        tile<L, 7, COLUMNS>, tile<L, 8, COLUMNS>};
  const int64_t most = std::min<int64_t>(MOST_ROWS, MOST_ACCUMULATORS / COLUMNS);
  const int64_t blocks = (rows + most - 1) / most;
  for (int64_t block = 0, done = 0; block < blocks; block++) {
    const int64_t height = (rows - done) / (blocks - block);
    tiles[height - 1](x, columns);
    x.a += height * x.a_row;
    x.c += height * x.c_row;
    if (x.initial) x.initial += height * x.initial_row;
    done += height;
  }
}

// Vectors of L lanes over `width` >= L columns. The last one overlaps the one before it where L does
// not divide `width`: both are in one tile, which reads what it adds to before it writes.
template <int L, int MOST>
void columns_of(int64_t rows, int64_t width, const Product& x) {
  const int64_t vectors = (width + L - 1) / L, groups = (vectors + MOST - 1) / MOST;
  for (int64_t group = 0, done = 0; group < groups; group++) {
    const int64_t count = (vectors - done) / (groups - group);  // the larger groups come last
    int64_t columns[4];
    for (int64_t j = 0; j < count; j++) columns[j] = std::min((done + j) * L, width - L);
    if (count == 1) rows_of<L, 1>(rows, x, columns);
    if (count == 2) rows_of<L, 2>(rows, x, columns);
    if constexpr (MOST > 2) {
      if (count == 3) rows_of<L, 3>(rows, x, columns);
      if (count == 4) rows_of<L, 4>(rows, x, columns);
    }
    done += count;
  }
}

// c (rows, width) = initial + a (rows, inner) b (inner, width).
void multiply(int64_t rows, int64_t width, const Product& x) {
  if (width >= LANES) return columns_of<LANES, MOST_COLUMNS>(rows, width, x);
  if (width >= 8) return columns_of<8, 2>(rows, width, x);
  if (width >= 4) return columns_of<4, 2>(rows, width, x);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < width; j++) {
      float sum = x.initial ? x.initial[i * x.initial_row + j] : 0.0f;
      for (int64_t k = 0; k < x.inner; k++) sum += x.a[i * x.a_row + k * x.a_column] * x.b[k * x.b_row + j];
      x.c[i * x.c_row + j] = sum;
    }
}

// ---------------------------------------------------------------- elementary functions
template <int L>
struct Math : Vec<L> {
  using V = typename Vec<L>::V;
  using I = typename Vec<L>::I;
  static V all(float x) { return V{} + x; }

  // (exp(x) - 2^n, 2^n) for -87 <= x <= 0, n the nearest integer to x / log 2.
  static std::pair<V, V> exponential(V x) {
    const V shifted = x * 1.44269504f + 12582912.0f;  // rounds to an integer in its last bits
    const V n = shifted - 12582912.0f;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V q = all(1.9875691500e-4f);
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    const V less_one = q * r * r + r;
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    const V power = (V)bits;
    return {less_one * power, power};
  }

  // tanh(a) and log(2 cosh a), both from exp(-2 |a|) - 1.
  static void activation(V a, V* slope, V* value) {
    const V magnitude = a < 0.0f ? -a : a;
    const V x = -2.0f * magnitude;
    const auto [part, power] = exponential(x < -87.0f ? all(-87.0f) : x);
    const V less_one = part + (power - 1.0f), e = less_one + 1.0f;
    const V t = -less_one / (e + 1.0f);
    *slope = a < 0.0f ? -t : t;
    if (!value) return;
    // log(1 + e) = 2 artanh(e / (2 + e)).
    const V s = e / (e + 2.0f), s2 = s * s;
    V q = all(2.0f / 15.0f);
    q = q * s2 + 2.0f / 13.0f;
    q = q * s2 + 2.0f / 11.0f;
    q = q * s2 + 2.0f / 9.0f;
    q = q * s2 + 2.0f / 7.0f;
    q = q * s2 + 2.0f / 5.0f;
    q = q * s2 + 2.0f / 3.0f;
    q = q * s2 + 2.0f;
    *value = magnitude + q * s;
  }
};

// `body(vector kind, column)` for vectors that cover `width` columns; the last may overlap.
template <class Body>
void over(int64_t width, Body body) {
  auto cover = [&]<int L>(Math<L> kind) {
    for (int64_t j = 0; j + L < width; j += L) body(kind, j);
    body(kind, width - L);
  };
  if (width >= LANES) return cover(Math<LANES>{});
  if (width >= 4) return cover(Math<4>{});
  for (int64_t j = 0; j < width; j++) body(Math<1>{}, j);
}

const float* data(const Tensor& x) {
  STD_TORCH_CHECK(x.is_contiguous(), "the native kernels take contiguous tensors");
  return static_cast<const float*>(x.const_data_ptr());
}
float* mutable_data(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Tensor empty(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape);
}

// ---------------------------------------------------------------- the network
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
           {n, data(z) + start * n, n, 1, data(to_opened), opened_size, opened.data(), opened_size, data(bias), 0});
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
    multiply(rows, width, {width, kept + at.state(l), row, 1, w_t + l * width * width, width,
                           opened.data(), width, data(biases) + l * width, 0});
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
      const float *s = kept + i * row + at.slope(l + 1), *q = first ? r : kept + i * row + at.pulled(l + 1);
      float* t = opened.data() + i * width;
      over(width, [&]<int L>(Math<L> m, int64_t j) { m.store(t + j, step * m.load(s + j) * m.load(q + j)); });
    }
    multiply(rows, width, {width, opened.data(), width, 1, w + l * width * width, width, kept + at.pulled(l),
                           row, first ? r : kept + at.pulled(l + 1), first ? 0 : row});
  }
  for (int64_t i = 0; i < rows; i++) {
    const float *s = kept + i * row + at.slope(0), *q = layers ? kept + i * row + at.pulled(0) : r;
    float* t = product.data() + i * opened_size;
    over(width, [&]<int L>(Math<L> m, int64_t j) { m.store(t + j, m.load(s + j) * m.load(q + j)); });
  }
  multiply(rows, out, {opened_size, product.data(), opened_size, 1, data(matrix), out,
                       mutable_data(p) + start * out, out, data(linear), 0});
  }
  return {p, kept_tensor};
}

// `kept_tensor` is stacked over time steps (steps, rows, …); the one at `at_step` counts.
std::tuple<Tensor, Tensor> network_backward(Tensor kept_tensor, Tensor at_step, Tensor p_bar, Tensor onto,
                                            Tensor from_opened, Tensor to_bars, Tensor weights, Tensor transposed,
                                            Tensor readout, double step_) {
  const int64_t all = onto.size(0), n = onto.size(1), width = readout.size(0), layers = weights.size(0);
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
           {out, data(p_bar) + start * out, out, 1, data(to_bars), opened_size, bars, bar_row, nullptr, 0});
  for (int64_t i = 0; i < rows; i++) {
    const float *b = bars + i * bar_row, *s = kept + i * row + at.slope(0);
    float* q_bar = bars + i * bar_row + to.pulled(0);
    std::copy(b, b + width, cotangent(0) + i * width);
    over(width, [&]<int L>(Math<L> m, int64_t j) { m.store(q_bar + j, m.load(b + j) * m.load(s + j)); });
  }
  for (int64_t l = 0; l < layers; l++) {
    multiply(rows, width, {width, bars + to.pulled(l), bar_row, 1, w_t + l * width * width, width,
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
    multiply(rows, width, {width, bars + to.layer(l), bar_row, 1, w + l * width * width, width, state_bar.data(),
                           width, innermost ? nullptr : state_bar.data(), width});
  }
  multiply(rows, n, {opened_size, bars, bar_row, 1, data(from_opened), n, mutable_data(z_bar) + start * n, n,
                     data(onto) + start * n, n});
  }
  return {z_bar, bars_tensor};
}

// Over all rows of all time steps, of which `p_bar` and `bars_tensor` have the last one first: gradients of the opening matrix by way of the states (opened, n)
// and of the costates (opened, out), sums of the opening's cotangents over each time step's rows
// (steps, opened), of the readout, of the linear term (out,), weights and biases.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> network_gradients(
    Tensor z, Tensor p_bar, Tensor kept_tensor, Tensor bars_tensor, Tensor readout, int64_t layers, double step_) {
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
  Tensor sums = zeros({steps, opened_size}), readout_bar = zeros({width}), linear_bar = zeros({out});
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
    // Sums over these rows first: the error of one sum over all rows would grow with their number.
    std::fill(partial.begin(), partial.end(), 0.0f);
    float *readout_part = partial.data(), *bias_part = readout_part + width, *linear_part = bias_part + layers * width;
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
    auto gather = [&](int64_t height, const float* a, int64_t a_row, const float* x, int64_t x_row, int64_t size,
                      float* sum) {
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
    gather(opened_size, scratch.data(), opened_size, costate_bars, out, out, mutable_data(by_costate));
  }
  return {by_state, by_costate, sums, readout_bar, linear_bar, weight_bars, bias_bars};
}

// ---------------------------------------------------------------- pairs
// Q (batch,) and dQ/dx (batch, agents, dimension) of positions (batch, agents, dimension).
std::tuple<Tensor, Tensor> pairs(Tensor positions, double cutoff_squared) {
  using M = Math<LANES>;
  using V = M::V;
  using I = M::I;
  const int64_t batch = positions.size(0), agents = positions.size(1), dimension = positions.size(2);
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
        const V dx = xi - M::load(&x[j]), dy = yi - M::load(&x[padded + j]), dz = zi - M::load(&x[2 * padded + j]);
        const V squared = dx * dx + dy * dy + dz * dz;
        const I index = lane + static_cast<int32_t>(j);
        const I counts = (squared < limit) & (index > static_cast<int32_t>(i)) & (index < static_cast<int32_t>(agents));
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
      "network_forward(Tensor z, Tensor bias, Tensor to_opened, Tensor matrix, Tensor transposed, Tensor weights, "
      "Tensor biases, Tensor readout, Tensor linear, float step) -> (Tensor, Tensor)");
  m.def(
      "network_backward(Tensor kept, Tensor at_step, Tensor p_bar, Tensor onto, Tensor from_opened, Tensor to_bars, Tensor weights, "
      "Tensor transposed, Tensor readout, float step) -> (Tensor, Tensor)");
  m.def(
      "network_gradients(Tensor z, Tensor p_bar, Tensor kept, Tensor bars, Tensor readout, int layers, float step) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("pairs(Tensor positions, float cutoff_squared) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(jfbcore, CPU, m) {
  m.impl("network_forward", TORCH_BOX(&network_forward));
  m.impl("network_backward", TORCH_BOX(&network_backward));
  m.impl("network_gradients", TORCH_BOX(&network_gradients));
  m.impl("pairs", TORCH_BOX(&pairs));
}
