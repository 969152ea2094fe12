// SPDX-License-Identifier: Apache-2.0
// What goes to every replica at once. Private to the router.
#pragma once

#include <memory>

#include "lk/cluster/http_relay.h"

namespace lk {

// Asks all replicas that live and answers once with what they said: lists merged (kModelList, kAdapterList,
// kUsageList); of a look-up (kWhoKnows) the first that was found; of a change (kEverywhere) the first refusal, or the
// first answer if all agree, and `x-lorikeet-replicas: 2/3`; with shared adapters one is asked (but to pin). What no
// replica answers is 503.
void gather(const RelayContext& context, RoutedAs how, HttpRequest request, std::shared_ptr<HttpReply> reply,
            std::string id);

}  // namespace lk
