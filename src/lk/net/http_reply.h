// SPDX-License-Identifier: Apache-2.0
// The HttpReply of a connection.
#pragma once

#include <memory>

#include "lk/net/http_server.h"

namespace lk {

class HttpConnection;
struct HttpAnswer;

std::shared_ptr<HttpReply> make_http_reply(std::shared_ptr<HttpConnection> connection,
                                           std::shared_ptr<HttpAnswer> answer);

}  // namespace lk
