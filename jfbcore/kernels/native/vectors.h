// Vectors, matrix products and elementary functions of float32, for one thread.
//
// Matrix products are written here because the library behind torch.mm takes kernels of half the
// vector width on processors that are not its maker's.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>
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
      for (int j = 0; j < COLUMNS; j++)
        sum[i][j] += F::load(x.initial + i * x.initial_row + columns[j]);
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) F::store(x.c + i * x.c_row + columns[j], sum[i][j]);
}

template <int L, int COLUMNS>
void rows_of(int64_t rows, Product x, const int64_t* columns) {
  using Tile = void (*)(const Product&, const int64_t*);
  static const Tile tiles[MOST_ROWS] = {
      tile<L, 1, COLUMNS>, tile<L, 2, COLUMNS>, tile<L, 3, COLUMNS>, tile<L, 4, COLUMNS>,
      tile<L, 5, COLUMNS>, tile<L, 6, COLUMNS>, tile<L, 7, COLUMNS>, tile<L, 8, COLUMNS>};
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

// Vectors of L lanes over `width` >= L columns. The last one overlaps the one before it where L
// does not divide `width`: both are in one tile, which reads what it adds to before it writes.
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
      for (int64_t k = 0; k < x.inner; k++)
        sum += x.a[i * x.a_row + k * x.a_column] * x.b[k * x.b_row + j];
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

}  // namespace
