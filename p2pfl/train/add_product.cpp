// x += A x in place, A [n, n] sparse by rows, x [n, P] by rows: the bits of torch's embedding_bag and of the sum after it.
//
// A panel of columns is copied to where it stays in a core's cache; each row's sum then stays in registers, where the
// rows that it takes from are read once, and the result goes straight to x. torch's own operations need four passes.
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using at::vec::Vectorized;

template <typename N>
constexpr int64_t LANE = Vectorized<N>::size();
constexpr int64_t WIDE = 8;  // registers of sums: so many independent additions hide the time that one takes

// embedding_bag of float32 rounds once, of float64 after the product, too.
inline Vectorized<float> added(Vectorized<float> sum, Vectorized<float> weight, Vectorized<float> entry) {
  return at::vec::fmadd(weight, entry, sum);
}

inline Vectorized<double> added(Vectorized<double> sum, Vectorized<double> weight, Vectorized<double> entry) {
  return sum + weight * entry;
}

// One row of A, as it is stored.
template <typename N>
struct Row {
  const int32_t* columns;
  const N* values;
  int64_t entries;
};

// to = own + the row's sum, in COUNT registers' columns; the last of them keeps ``last`` numbers.
template <typename N, int64_t COUNT>
inline void add(Row<N> row, const N* panel, int64_t width, const N* own, N* to, int64_t last) {
  Vectorized<N> sums[COUNT];
#pragma GCC unroll 8
  for (int64_t lane = 0; lane < COUNT; ++lane) {
    sums[lane] = Vectorized<N>(N(0));
  }
  for (int64_t entry = 0; entry < row.entries; ++entry) {
    const N* from = panel + row.columns[entry] * width;
    const Vectorized<N> weight(row.values[entry]);
#pragma GCC unroll 8
    for (int64_t lane = 0; lane < COUNT; ++lane) {
      sums[lane] = added(sums[lane], weight, Vectorized<N>::loadu(from + lane * LANE<N>));
    }
  }
#pragma GCC unroll 8
  for (int64_t lane = 0; lane < COUNT; ++lane) {
    const Vectorized<N> moved = Vectorized<N>::loadu(own + lane * LANE<N>) + sums[lane];
    if (COUNT > 1 || last == LANE<N>) {
      moved.store(to + lane * LANE<N>);
    } else {
      moved.store(to, last);
    }
  }
}

// Panels first, first + step, ... of ``width`` columns, a multiple of the lane; ``panel`` [n, width] is scratch.
template <typename N>
void add_product(const int32_t* starts, const int32_t* columns, const N* values, N* x, N* panel, int64_t sites,
                 int64_t size, int64_t width, int64_t first, int64_t step) {
  for (int64_t left = first * width; left < size; left += step * width) {
    const int64_t here = std::min(width, size - left);
    for (int64_t site = 0; site < sites; ++site) {
      std::memcpy(panel + site * width, x + site * size + left, here * sizeof(N));
    }
    for (int64_t site = 0; site < sites; ++site) {
      const Row<N> row{columns + starts[site], values + starts[site], starts[site + 1] - starts[site]};
      const N* own = panel + site * width;
      N* to = x + site * size + left;
      int64_t at = 0;
      for (; at + WIDE * LANE<N> <= here; at += WIDE * LANE<N>) {
        add<N, WIDE>(row, panel + at, width, own + at, to + at, LANE<N>);
      }
      for (; at < here; at += LANE<N>) {
        add<N, 1>(row, panel + at, width, own + at, to + at, std::min(LANE<N>, here - at));
      }
    }
  }
}

}  // namespace

extern "C" void add_product_float32(const int32_t* starts, const int32_t* columns, const float* values, float* x,
                                    float* panel, int64_t sites, int64_t size, int64_t width, int64_t first,
                                    int64_t step) {
  add_product(starts, columns, values, x, panel, sites, size, width, first, step);
}

extern "C" void add_product_float64(const int32_t* starts, const int32_t* columns, const double* values, double* x,
                                    double* panel, int64_t sites, int64_t size, int64_t width, int64_t first,
                                    int64_t step) {
  add_product(starts, columns, values, x, panel, sites, size, width, first, step);
}
