// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/delta_svd.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

namespace lk {
namespace {

using Matrix = Eigen::MatrixXd;
using RowMatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const RowMatrixF>;

Status check_finite(std::span<const float> values) {
  if (std::ranges::all_of(values, [](float v) { return std::isfinite(v); })) return Status();
  return data_loss("a change of a weight holds values that are not finite");
}

// u [out, k] and v [in, k] orthonormal, s descending: keeps the first `rank` directions. A direction's sign is free;
// the largest element of its left vector is positive here, so that no library's choice is in the result.
TruncatedDelta keep_directions(const Matrix& u, const Eigen::VectorXd& s, const Matrix& v, int64_t rank) {
  TruncatedDelta result;
  const int64_t kept = std::min<int64_t>(rank, s.size());
  result.factors = {.rank = kept, .in = v.rows(), .out = u.rows(), .a = {}, .b = {}};
  result.singular.assign(s.data(), s.data() + s.size());
  for (int64_t k = s.size() - 1; k >= 0; --k) {  // the small ones first
    result.energy += s[k] * s[k];
    if (k >= kept) result.dropped += s[k] * s[k];
  }
  result.factors.a.resize(static_cast<size_t>(kept * v.rows()));
  result.factors.b.resize(static_cast<size_t>(kept * u.rows()));
  Eigen::Map<RowMatrixF> a(result.factors.a.data(), kept, v.rows()), b(result.factors.b.data(), u.rows(), kept);
  for (int64_t k = 0; k < kept; ++k) {
    Eigen::Index largest = 0;
    u.col(k).cwiseAbs().maxCoeff(&largest);
    const double root = std::sqrt(s[k]), sign = u(largest, k) < 0 ? -1 : 1;
    a.row(k) = (root * sign * v.col(k).transpose()).cast<float>();
    b.col(k) = (root * sign * u.col(k)).cast<float>();
  }
  return result;
}

// Q [rows, k] and R [k, columns] of a tall or wide matrix, k = min(rows, columns).
struct ThinQr {
  Matrix q, r;
};
ThinQr thin_qr(const Matrix& m) {
  const int64_t k = std::min(m.rows(), m.cols());
  const Eigen::HouseholderQR<Matrix> qr(m);
  ThinQr thin;
  thin.q = qr.householderQ() * Matrix::Identity(m.rows(), k);
  thin.r = qr.matrixQR().topRows(k).triangularView<Eigen::Upper>();
  return thin;
}

}  // namespace

Result<TruncatedDelta> truncate_delta(const DeltaFactors& delta, int64_t rank) {
  LK_CHECK(rank >= 1 && delta.rank >= 1 && std::ssize(delta.a) == delta.rank * delta.in &&
           std::ssize(delta.b) == delta.out * delta.rank);
  LK_RETURN_IF_ERROR(check_finite(delta.a));
  LK_RETURN_IF_ERROR(check_finite(delta.b));
  const ConstMap a(delta.a.data(), delta.rank, delta.in), b(delta.b.data(), delta.out, delta.rank);
  const ThinQr left = thin_qr(b.cast<double>()), right = thin_qr(a.transpose().cast<double>());
  const Matrix core = left.r * right.r.transpose();  // [min(out, rank), min(in, rank)]
  const Eigen::BDCSVD<Matrix> svd(core, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return keep_directions(left.q * svd.matrixU(), svd.singularValues(), right.q * svd.matrixV(), rank);
}

Result<TruncatedDelta> truncate_matrix(std::span<const float> matrix, int64_t out, int64_t in, int64_t rank) {
  LK_CHECK(rank >= 1 && std::ssize(matrix) == out * in);
  LK_RETURN_IF_ERROR(check_finite(matrix));
  const Matrix m = ConstMap(matrix.data(), out, in).cast<double>();
  const bool wide = out <= in;
  const Matrix gram = wide ? Matrix(m * m.transpose()) : Matrix(m.transpose() * m);
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(gram);  // ascending
  const Eigen::VectorXd s = solver.eigenvalues().reverse().cwiseMax(0.0).cwiseSqrt();
  const int64_t kept = std::min<int64_t>(rank, s.size());
  const Matrix own = solver.eigenvectors().rightCols(kept).rowwise().reverse();
  // The other side from the matrix itself: U^T M = S V^T, M V = U S. A direction without length stays zero.
  const Eigen::VectorXd inverse =
      s.head(kept).unaryExpr([&](double x) { return x > 1e-12 * s[0] && x > 0 ? 1 / x : 0.0; });
  const Matrix other = (wide ? Matrix(m.transpose() * own) : Matrix(m * own)) * inverse.asDiagonal();
  TruncatedDelta result = keep_directions(wide ? own : other, s.head(kept), wide ? other : own, kept);
  // The norm of the matrix itself, and what is not in the kept directions: the Gram matrix's tail is noise.
  result.singular.assign(s.data(), s.data() + s.size());
  result.energy = m.squaredNorm();
  result.dropped = kept == s.size() ? 0 : std::max(0.0, result.energy - s.head(kept).squaredNorm());
  return result;
}

}  // namespace lk
