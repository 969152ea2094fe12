// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/delta_math.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstring>

namespace lk {
namespace {

using RowMatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

RowMatrixF to_matrix(const TensorView& view) {
  RowMatrixF matrix(view.dim(0), view.dim(1));
  view.copy_to(matrix.data());
  return matrix;
}

InitFactors to_factors(const RowMatrixD& a0, const RowMatrixD& b0) {
  const RowMatrixF a = a0.cast<float>(), b = b0.cast<float>();
  return {{a.data(), a.data() + a.size()}, {b.data(), b.data() + b.size()}};
}

// The leading left singular vectors from the eigenvectors of W W^T (or of W^T W, whichever is
// smaller), in f64: the squared condition costs half the digits of f64 and leaves more than the f32
// SVD of PEFT has.
InitFactors pissa_factors(const RowMatrixD& weight, int64_t rank, double scaling) {
  const bool wide = weight.rows() <= weight.cols();
  const RowMatrixD gram = wide ? RowMatrixD(weight * weight.transpose()) : RowMatrixD(weight.transpose() * weight);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);
  const Eigen::MatrixXd top = solver.eigenvectors().rightCols(rank).rowwise().reverse();  // ascending order
  const Eigen::VectorXd singular = solver.eigenvalues().tail(rank).reverse().cwiseMax(0.0).cwiseSqrt();
  const Eigen::VectorXd root = (singular / scaling).cwiseSqrt();
  // U S V^T with the missing side from W itself: U^T W = S V^T, W V = U S.
  const Eigen::VectorXd inverse = (singular * scaling).cwiseSqrt().cwiseMax(1e-150).cwiseInverse();
  if (wide) return to_factors(inverse.asDiagonal() * (top.transpose() * weight), top * root.asDiagonal());
  return to_factors(root.asDiagonal() * top.transpose(), (weight * top) * inverse.asDiagonal());
}

// Q of the first `rank` columns is the first `rank` columns of Q; R's first rows are Q^T W.
InitFactors olora_factors(const RowMatrixD& weight, int64_t rank) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(weight.leftCols(rank));
  const Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(weight.rows(), rank);
  return to_factors(q.transpose() * weight, q);
}

}  // namespace

void for_each_merged_block(const TensorView& weight, const LoraDelta& delta,
                           const std::function<void(int64_t, int64_t, float*)>& visit) {
  constexpr int64_t kBlockRows = 64;
  const int64_t out = weight.dim(0), in = weight.dim(1);
  const RowMatrixF a = to_matrix(delta.a);
  RowMatrixF block(std::min(kBlockRows, out), in);
  RowMatrixF b(std::min(kBlockRows, out), delta.rank);
  for (int64_t begin = 0; begin < out; begin += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, out - begin);
    convert(weight.row(begin), weight.dtype(), block.data(), DType::kF32, rows * in);
    convert(delta.b.row(begin), delta.b.dtype(), b.data(), DType::kF32, rows * delta.rank);
    b.topRows(rows) *= static_cast<float>(delta.scaling);
    block.topRows(rows).noalias() += b.topRows(rows) * a;
    visit(begin, rows, block.data());
  }
}

bool dora_scales(const TensorView& weight, const LoraDelta& delta, float* out) {
  delta.magnitude.copy_to(out);
  bool ok = true;
  const int64_t in = weight.dim(1);
  for_each_merged_block(weight, delta, [&](int64_t begin, int64_t rows, float* block) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (int64_t column = 0; column < in; ++column) {
        const double value = block[row * in + column];
        sum += value * value;
      }
      const double scale = static_cast<double>(out[begin + row]) / std::sqrt(sum);
      ok &= std::isfinite(scale);
      out[begin + row] = static_cast<float>(scale);
    }
  });
  return ok;
}

InitFactors initial_factors(BaseChange change, const TensorView& weight, int64_t rank, double scaling) {
  const RowMatrixD dense = to_matrix(weight).cast<double>();
  LK_CHECK(rank <= std::min(dense.rows(), dense.cols()) && change != BaseChange::kNone);
  return change == BaseChange::kPissa ? pissa_factors(dense, rank, scaling) : olora_factors(dense, rank);
}

TensorView transposed(const TensorView& matrix, std::vector<Buffer>& owned) {
  const int64_t rows = matrix.dim(0), columns = matrix.dim(1), size = dtype_bytes(matrix.dtype());
  Buffer buffer(std::max<int64_t>(matrix.num_bytes(), 64));
  const auto* from = static_cast<const std::byte*>(matrix.raw());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      std::memcpy(buffer.data() + (column * rows + row) * size, from + (row * columns + column) * size,
                  static_cast<size_t>(size));
    }
  }
  const TensorView view(buffer.data(), matrix.dtype(), {columns, rows});
  owned.push_back(std::move(buffer));
  return view;
}

}  // namespace lk
