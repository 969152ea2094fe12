// SPDX-License-Identifier: Apache-2.0
// What goes to every replica at once. Private to the router.
#pragma once

#include <memory>

#include "lk/cluster/http_relay.h"

namespace lk {

// Asks all replicas that live and answers once with what they said: lists merged (kModelList, kAdapterList,
// kUsageList); of a look-up (kWhoKnows) the first that was found, or why not: a replica that could not be asked before
// one that does not know it; of a change (kEverywhere) the first refusal, or the first answer if all agree; with shared
// adapters one is asked (but to pin). `x-lorikeet-replicas: 2/3` says how many replicas' answer it is, but of what was
// found. Without a replica to ask it is 503. Lists and look-ups are bounded (GatherBounds), and dropped when their
// client leaves.
void gather(const RelayContext& context, RoutedAs how, HttpRequest request, std::shared_ptr<HttpReply> reply,
            std::string id);

}  // namespace lk
