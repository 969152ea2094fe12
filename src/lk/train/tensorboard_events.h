// SPDX-License-Identifier: Apache-2.0
// A TensorBoard event file of scalars: TFRecord frames of Event messages, encoded by hand. Source: tensorboard's
// event.proto and summary.proto, TensorFlow's record_writer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

class TensorboardEvents {
 public:
  // A new file in `directory`, which is made. `first_step` > 0: what earlier files have from this step on does not
  // count.
  static Result<TensorboardEvents> create(const std::string& directory, int64_t first_step, double wall_time);

  Status add(int64_t step, double wall_time, const std::vector<std::pair<std::string, double>>& scalars);

  const std::string& path() const { return path_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  Status write_record(std::string_view event);

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace lk
