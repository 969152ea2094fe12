// SPDX-License-Identifier: Apache-2.0
// What goes to every replica at once. Private to the router.
#pragma once

#include <memory>

#include "lk/cluster/http_relay.h"

namespace lk {

// GET /v1/models: the models of all replicas, each once. What no replica answers is 503.
void gather_models(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply);
// A change of adapters: asked of every replica that lives. The answer is the first refusal, or the first answer if all
// agree; `x-lorikeet-replicas: 2/3` says how many did.
void broadcast(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply);

}  // namespace lk
