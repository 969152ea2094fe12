// SPDX-License-Identifier: Apache-2.0
// TensorView: a non-owning, read-only row-major array with a dtype and up to four dimensions. No arithmetic.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>

#include "lk/tensor/dtype.h"

namespace lk {

class TensorView {
 public:
  TensorView() = default;
  TensorView(const void* data, DType dtype, std::span<const int64_t> shape) : data_(data), dtype_(dtype) {
    LK_CHECK(shape.size() <= 4);
    for (int64_t extent : shape) shape_[static_cast<size_t>(num_dims_++)] = extent;
  }
  TensorView(const void* data, DType dtype, std::initializer_list<int64_t> shape)
      : TensorView(data, dtype, std::span<const int64_t>(shape.begin(), shape.size())) {}

  bool defined() const { return data_ != nullptr; }
  const void* raw() const { return data_; }
  DType dtype() const { return dtype_; }
  int num_dims() const { return num_dims_; }
  int64_t dim(int axis) const {
    LK_DCHECK(axis < num_dims_);
    return shape_[static_cast<size_t>(axis)];
  }
  std::span<const int64_t> shape() const { return {shape_.data(), static_cast<size_t>(num_dims_)}; }
  int64_t num_elements() const {
    int64_t n = 1;
    for (int axis = 0; axis < num_dims_; ++axis) n *= dim(axis);
    return n;
  }
  int64_t num_bytes() const { return num_elements() * dtype_bytes(dtype_); }
  bool has_shape(std::initializer_list<int64_t> shape) const {
    if (static_cast<size_t>(num_dims_) != shape.size()) return false;
    int axis = 0;
    for (int64_t extent : shape)
      if (dim(axis++) != extent) return false;
    return true;
  }
  std::string shape_string() const;  // "[32000, 2048]"

  template <class T>
  const T* data() const {
    LK_CHECK(dtype_of<T>() == dtype_, "tensor is {}", to_string(dtype_));
    return static_cast<const T*>(data_);
  }
  // Row `index` of a matrix, as raw bytes.
  const void* row(int64_t index) const {
    LK_DCHECK(num_dims_ == 2 && index < dim(0));
    return static_cast<const std::byte*>(data_) + index * dim(1) * dtype_bytes(dtype_);
  }
  // Rows [begin, end) of the first dimension.
  TensorView slice(int64_t begin, int64_t end) const {
    LK_CHECK(num_dims_ >= 1 && 0 <= begin && begin <= end && end <= dim(0));
    TensorView view = *this;
    view.data_ = static_cast<const std::byte*>(data_) +
                 (dim(0) == 0 ? 0 : begin * (num_elements() / dim(0)) * dtype_bytes(dtype_));
    view.shape_[0] = end - begin;
    return view;
  }
  // A converted copy of all elements into dst[num_elements()].
  void copy_to(float* dst) const { convert(data_, dtype_, dst, DType::kF32, num_elements()); }

 private:
  const void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int num_dims_ = 0;
  std::array<int64_t, 4> shape_{};
};

}  // namespace lk
