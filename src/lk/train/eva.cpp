// SPDX-License-Identifier: Apache-2.0
#include "lk/train/eva.h"

#include <Eigen/Dense>
#include <algorithm>
#include <map>

namespace lk {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The leading principal directions of rows that come in batches (Ross et al. 2008, "Incremental learning for robust
// visual tracking", section 2.1; the algorithm of scikit-learn's IncrementalPCA).
class IncrementalPca {
 public:
  IncrementalPca(int64_t num_components, int64_t width) : num_components_(num_components), width_(width) {}

  // At most: directions, mean and squares.
  int64_t kept_bytes() const { return (num_components_ + 2) * width_ * kElement; }
  // At most, while a batch of so many rows is added, the batch and its input included.
  int64_t adding_bytes(int64_t rows) const {
    const int64_t stacked = num_components_ + rows + 1;
    // Batch and what stands for it as it was read; the stack; its products, eigenvectors and their workspace; the next
    // directions, and the product they are scaled from.
    return (2 * rows + stacked + 2 * num_components_) * width_ * kElement + 4 * stacked * stacked * kElement;
  }

  void add(const Matrix& batch, double tau) {
    const auto rows = static_cast<double>(batch.rows());
    const Eigen::RowVectorXd batch_mean = batch.colwise().mean();
    if (count_ == 0) mean_ = Eigen::RowVectorXd::Zero(batch.cols()), squares_ = mean_;
    const double total = count_ + rows;
    squares_ += batch.array().square().matrix().colwise().sum();
    const int64_t kept = directions_.rows();
    Matrix stacked(kept + batch.rows() + (count_ > 0 ? 1 : 0), batch.cols());
    if (kept > 0) stacked.topRows(kept) = singular_.asDiagonal() * directions_;
    stacked.middleRows(kept, batch.rows()) = batch.rowwise() - batch_mean;
    if (count_ > 0) stacked.bottomRows(1) = std::sqrt(count_ * rows / total) * (mean_ - batch_mean);
    mean_ = (mean_ * count_ + batch_mean * rows) / total;
    count_ = total;

    // Right singular vectors through the smaller Gram matrix.
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(stacked * stacked.transpose());
    int64_t take = std::min<int64_t>({num_components_, stacked.rows(), stacked.cols()});
    // Directions in which nothing varies are rounding, not data.
    const double smallest = 1e-10 * solver.eigenvalues().maxCoeff();
    while (take > 1 && solver.eigenvalues()[solver.eigenvalues().size() - take] <= smallest) --take;
    const Eigen::VectorXd values = solver.eigenvalues().tail(take).reverse().cwiseMax(0.0);
    const Eigen::MatrixXd left = solver.eigenvectors().rightCols(take).rowwise().reverse();
    const Eigen::VectorXd singular = values.cwiseSqrt();
    Matrix directions = singular.cwiseMax(1e-12).cwiseInverse().asDiagonal() * (left.transpose() * stacked);
    settled_ = directions.rows() == directions_.rows();
    for (int64_t row = 0; settled_ && row < directions.rows(); ++row)
      settled_ = std::abs(directions.row(row).dot(directions_.row(row))) >= tau;
    directions_ = std::move(directions);
    singular_ = singular;
  }

  bool settled() const { return settled_; }
  const Matrix& directions() const { return directions_; }
  // Share of the whole variance along direction i.
  double explained(int64_t i) const {
    const double whole = (squares_ - count_ * mean_.cwiseProduct(mean_)).sum();
    return whole > 0 ? singular_[i] * singular_[i] / whole : 0;
  }

 private:
  static constexpr int64_t kElement = sizeof(double);
  int64_t num_components_, width_;
  double count_ = 0;
  bool settled_ = false;
  Eigen::RowVectorXd mean_, squares_;
  Eigen::VectorXd singular_;
  Matrix directions_;  // [components so far, in], orthonormal rows
};

struct Place {
  int64_t layer;
  ProjGroup group;
  auto operator<=>(const Place&) const = default;
};

// Modules that read the same input share it.
std::map<Place, IncrementalPca> places_of(const Adapter& initial, double rho) {
  std::map<Place, IncrementalPca> places;
  for (size_t layer = 0; layer < initial.layers.size(); ++layer) {
    for (int p = 0; p < kNumProjs; ++p) {
      const auto& delta = initial.layers[layer][static_cast<size_t>(p)];
      if (!delta) continue;
      const auto most = static_cast<int64_t>(std::ceil(static_cast<double>(delta->rank) * rho));
      places.try_emplace({static_cast<int64_t>(layer), group_of(static_cast<Proj>(p))}, std::min(most, delta->a.dim(1)),
                         delta->a.dim(1));
    }
  }
  return places;
}

}  // namespace

int64_t eva_bytes(const Adapter& initial, const EvaOptions& options) {
  int64_t kept = 0, adding = 0;
  for (const auto& [place, pca] : places_of(initial, options.rho)) {
    kept += pca.kept_bytes();
    adding = std::max(adding, pca.adding_bytes(kLayerRows));
  }
  return kept + adding;
}

Result<Adapter> apply_eva(Adapter initial, TrainPass& pass, Backend& backend, const ModelWeights& weights,
                          SampleReader& data, const EvaOptions& options, const AskStop& stop) {
  std::map<Place, IncrementalPca> places = places_of(initial, options.rho);
  const auto settled = [](const auto& place) { return place.second.settled(); };
  const DataCursor cursor = data.cursor();
  for (int64_t tokens = 0; tokens < options.max_tokens && !std::ranges::all_of(places, settled);) {
    LK_RETURN_IF_ERROR(check_stop(stop));
    TokenBlock block;
    for (;;) {
      const DataCursor before = data.cursor();
      LK_ASSIGN_OR_RETURN(const Sample sample, data.next());
      const auto length = static_cast<int64_t>(sample.ids.size());
      LK_RETURN_IF_ERROR(pass.accepts(sample.ids).with_context(data.records().file->where(sample.record)));
      if (block.num_rows() + length > pass.max_rows()) {
        data.seek(before);
        break;
      }
      block.add(sample.ids, sample.weights, 0, nullptr);
    }
    tokens += block.num_rows();
    // Only rows that carry a loss speak for what the job is about.
    std::vector<int64_t> rows;
    for (size_t row = 0; row < block.weights.size(); ++row)
      if (block.weights[row] != 0) rows.push_back(static_cast<int64_t>(row));
    pass.observe(block, [&](int64_t layer, ProjGroup group, const void* x, int64_t first_row, int64_t num_rows,
                            int64_t width) {
      const auto place = places.find({layer, group});
      if (place == places.end() || place->second.settled()) return;
      std::vector<int64_t> own;
      for (int64_t row : rows)
        if (row >= first_row && row < first_row + num_rows) own.push_back(row - first_row);
      if (own.empty()) return;
      const int64_t bytes = dtype_bytes(weights.act);
      std::vector<std::byte> host(static_cast<size_t>(num_rows * width * bytes));
      std::vector<float> values(static_cast<size_t>(num_rows * width));
      backend.read(host.data(), x, num_rows * width * bytes);
      convert(host.data(), weights.act, values.data(), DType::kF32, num_rows * width);
      Matrix batch(static_cast<int64_t>(own.size()), width);
      for (size_t i = 0; i < own.size(); ++i)
        for (int64_t col = 0; col < width; ++col)
          batch(static_cast<int64_t>(i), col) = static_cast<double>(values[static_cast<size_t>(own[i] * width + col)]);
      place->second.add(batch, options.tau);
    });
  }
  data.seek(cursor);

  // The whole budget of ranks, to the directions that explain most of their input.
  struct Candidate {
    size_t layer;
    int proj;
    double explained;
  };
  std::vector<Candidate> candidates;
  int64_t budget = 0;
  for (size_t layer = 0; layer < initial.layers.size(); ++layer) {
    for (int p = 0; p < kNumProjs; ++p) {
      const auto& delta = initial.layers[layer][static_cast<size_t>(p)];
      if (!delta) continue;
      budget += delta->rank;
      const IncrementalPca& pca = places.at({static_cast<int64_t>(layer), group_of(static_cast<Proj>(p))});
      const auto most = static_cast<int64_t>(std::ceil(static_cast<double>(delta->rank) * options.rho));
      for (int64_t i = 0; i < std::min(most, pca.directions().rows()); ++i)
        candidates.push_back({layer, p, pca.explained(i)});
    }
  }
  std::ranges::stable_sort(candidates, std::ranges::greater(), &Candidate::explained);
  std::map<std::pair<size_t, int>, int64_t> ranks;
  for (const Candidate& candidate : candidates) {
    if (budget-- <= 0) break;
    ++ranks[{candidate.layer, candidate.proj}];
  }
  for (size_t layer = 0; layer < initial.layers.size(); ++layer) {
    for (int p = 0; p < kNumProjs; ++p) {
      auto& delta = initial.layers[layer][static_cast<size_t>(p)];
      if (!delta) continue;
      const int64_t rank = ranks[{layer, p}];
      if (rank == 0) {
        delta.reset();
        continue;
      }
      const Matrix& directions = places.at({static_cast<int64_t>(layer), group_of(static_cast<Proj>(p))}).directions();
      const int64_t in = delta->a.dim(1), out = delta->b.dim(0);
      Buffer a(rank * in * 4), b(rank * out * 4);
      for (int64_t i = 0; i < rank * in; ++i) a.as<float>()[i] = static_cast<float>(directions.data()[i]);
      delta->rank = rank;
      delta->a = TensorView(a.data(), DType::kF32, {rank, in});
      delta->b = TensorView(b.data(), DType::kF32, {out, rank});  // zeroed
      initial.owned.push_back(std::move(a));
      initial.owned.push_back(std::move(b));
    }
  }
  return initial;
}

}  // namespace lk
