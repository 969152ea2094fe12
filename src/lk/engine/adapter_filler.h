// SPDX-License-Identifier: Apache-2.0
// Fills the pages that an AdapterLayout has places in.
#pragma once

#include <memory>
#include <span>

#include "lk/engine/adapter_layout.h"
#include "lk/memory/page_pool.h"
#include "lk/model/resident_adapter.h"
#include "lk/ops/backend.h"

namespace lk {

// Copies an adapter into its pages, converting to the act type, and builds what the forward pass sees of it. Reads the
// adapter's file (may block on disk). Any thread, beside a running step. Requires: pages.size() == layout.num_pages(),
// and nobody else uses them.
std::shared_ptr<const ResidentAdapter> fill_adapter(const AdapterLayout& layout, std::shared_ptr<const Adapter> adapter,
                                                    std::span<const PageId> pages, std::byte* pool_base,
                                                    Backend& backend);

}  // namespace lk
