// c_i = a_i b_i for many small float32 matrices: a [n, M, K], b [n, K, N] -> c [n, M, N].
//
// oneDNN's micro-kernel (Georganas et al. 2020, arXiv 1906.06440) multiplies, as torch ships and calls it; it takes
// rows that lie together, so a transposed operand is turned first, one matrix at a time and within the cache.
#include <ATen/native/CPUBlas.h>
#include <ATen/native/cpu/utils.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace {

bool in_rows(const at::Tensor& t) { return t.stride(2) == 1 && t.stride(1) >= t.size(2); }

bool in_columns(const at::Tensor& t) { return t.stride(1) == 1 && t.stride(2) >= t.size(1); }

// The matrices of one operand, each in rows.
class Operand {
 public:
  explicit Operand(const at::Tensor& given) : tensor_(given), turned_(!in_rows(given) && in_columns(given)) {
    if (turned_) {
      scratch_.resize(given.size(1) * given.size(2));
    } else if (!in_rows(given)) {
      tensor_ = given.contiguous();
    }
    start_ = tensor_.const_data_ptr<float>();
  }

  // Of a single row any stride counts as contiguous; the kernel asks for one that is long enough.
  int64_t row() const { return turned_ ? tensor_.size(2) : std::max(tensor_.stride(1), tensor_.size(2)); }

  const float* at(int64_t place) {
    const float* own = start_ + place * tensor_.stride(0);
    if (!turned_) {
      return own;
    }
    if (own != last_) {
      at::native::utils::transpose<float>(
          tensor_.size(2), tensor_.size(1), own, tensor_.stride(2), scratch_.data(), tensor_.size(2));
      last_ = own;
    }
    return scratch_.data();
  }

 private:
  at::Tensor tensor_;
  bool turned_;
  std::vector<float> scratch_;
  const float* start_;
  const float* last_ = nullptr;
};

at::Tensor products(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.dim() == 3 && b.dim() == 3 && a.size(0) == b.size(0) && a.size(2) == b.size(1), "shapes differ");
  const auto n = a.size(0), rows = a.size(1), inner = a.size(2), columns = b.size(2);
  if (a.scalar_type() != at::kFloat || b.scalar_type() != at::kFloat || n * rows * inner * columns == 0) {
    return at::bmm(a, b);
  }
  auto c = at::empty({n, rows, columns}, a.options());
  Operand left(a), right(b);
  float* out = c.mutable_data_ptr<float>();
  for (int64_t place = 0; place < n; ++place) {
    at::native::cpublas::brgemm(
        rows, columns, inner, left.row(), right.row(), columns, false, left.at(place), right.at(place),
        out + place * rows * columns, false);
  }
  at::native::cpublas::brgemm_release(false);
  return c;
}

}  // namespace

TORCH_LIBRARY(p2pfl, library) { library.def("products(Tensor a, Tensor b) -> Tensor", {at::Tag::flexible_layout}); }

TORCH_LIBRARY_IMPL(p2pfl, CPU, library) { library.impl("products", &products); }
