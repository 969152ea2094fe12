// SPDX-License-Identifier: Apache-2.0
// KubernetesStandIn: as much of a Kubernetes API server as a registry sees: objects with resource versions that writes
// must name, lists and watches with selectors, bookmarks, history that ends (410), an account's token.
#pragma once

#include <boost/json.hpp>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lk/base/json_text.h"
#include "lk/net/http_server.h"

namespace lk::testing {

class KubernetesStandIn {
 public:
  explicit KubernetesStandIn(HttpServerOptions options = {.listen = {{"127.0.0.1:0"}}}) {
    server_ = HttpServer::start(
                  options, [](HttpRequest&) { return std::nullopt; },
                  [this](HttpRequest request, std::shared_ptr<HttpReply> reply) { handle(request, std::move(reply)); })
                  .value();
  }
  std::string address() const { return server_->address(0); }

  // --- As the cluster's controllers, or somebody with kubectl.
  void put(const std::string& collection, boost::json::object object) {
    std::lock_guard lock(mutex_);
    const std::string name(object.at("metadata").at("name").get_string());
    const bool is_new = !objects_[collection].contains(name);
    store(is_new ? "ADDED" : "MODIFIED", collection, name, std::move(object));
  }
  void remove(const std::string& collection, const std::string& name) {
    std::lock_guard lock(mutex_);
    store("DELETED", collection, name, objects_[collection].at(name));
  }
  boost::json::object get(const std::string& collection, const std::string& name) {
    std::lock_guard lock(mutex_);
    const auto found = objects_[collection].find(name);
    return found == objects_[collection].end() ? boost::json::object() : found->second;
  }
  // What happened before now is forgotten, and all watches break: who comes back with an old version hears 410.
  void forget_history() {
    std::lock_guard lock(mutex_);
    ++revision_;
    oldest_ = revision_;
    history_.clear();
    end_watches();
  }
  void end_watches() {
    server_->post(0, [this] {
      std::lock_guard lock(mutex_);
      for (auto& watch : std::exchange(watches_, {}))
        if (watch.reply) watch.reply->end();
    });
  }
  void send_bookmarks() {  // the version alone goes on
    std::lock_guard lock(mutex_);
    ++revision_;
    const boost::json::object metadata{{"resourceVersion", std::to_string(revision_)}};
    for (const Watch& watch : watches_) {
      const boost::json::object object{{"kind", "x"}, {"metadata", metadata}};
      say(watch, json_text(boost::json::object{{"type", "BOOKMARK"}, {"object", object}}));
    }
  }
  std::string token;                      // that opens; "" = any
  bool is_away = false;                   // 503 to everybody
  int fail_writes_once = 0;               // so many writes happen, and their answers are lost: 504
  std::mutex& mutex() { return mutex_; }  // of all of these
  int num_lists() {
    std::lock_guard lock(mutex_);
    return lists_;
  }
  int num_watches() {
    std::lock_guard lock(mutex_);
    return static_cast<int>(watches_.size());
  }

 private:
  struct Watch {
    std::shared_ptr<HttpReply> reply;
    std::string collection, selector;
  };
  struct Event {
    int64_t revision = 0;
    std::string collection, text, selector_of;
    boost::json::object object;
  };
  static std::string query_value(const std::string& query, const std::string& key) {
    for (size_t at = 0; at < query.size();) {
      const size_t end = std::min(query.find('&', at), query.size());
      const std::string pair = query.substr(at, end - at);
      if (pair.starts_with(key + "=")) return pair.substr(key.size() + 1);
      at = end + 1;
    }
    return "";
  }
  // "fieldSelector=metadata.name%3DX", "labelSelector=kubernetes.io%2Fservice-name%3DX".
  static std::string selector_of(const std::string& query) {
    const std::string field = query_value(query, "fieldSelector"), label = query_value(query, "labelSelector");
    return !field.empty() ? "f" + field.substr(field.find("%3D") + 3) : "l" + label.substr(label.find("%3D") + 3);
  }
  static bool is_meant(const boost::json::object& object, const std::string& selector) {
    const boost::json::object& metadata = object.at("metadata").get_object();
    if (selector[0] == 'f') return metadata.at("name").get_string() == selector.substr(1).c_str();
    const auto* labels = metadata.if_contains("labels");
    return labels && labels->at("kubernetes.io/service-name").get_string() == selector.substr(1).c_str();
  }
  void say(const Watch& watch, const std::string& line) {
    server_->post(0, [reply = watch.reply, line] { reply->write(line + "\n"); });
  }
  void store(const std::string& type, const std::string& collection, const std::string& name,
             boost::json::object object) {
    ++revision_;
    object["metadata"].get_object()["resourceVersion"] = std::to_string(revision_);
    if (type == "DELETED")
      objects_[collection].erase(name);
    else
      objects_[collection][name] = object;
    Event event{revision_, collection, json_text(boost::json::object{{"type", type}, {"object", object}}), "", object};
    for (const Watch& watch : watches_)
      if (watch.collection == collection && is_meant(object, watch.selector)) say(watch, event.text);
    history_.push_back(std::move(event));
  }
  static void refuse(HttpReply& reply, int status, const std::string& message) {
    reply.respond({.status = status,
                   .body = json_text(boost::json::object{{"kind", "Status"}, {"message", message}, {"code", status}})});
  }

  void handle(HttpRequest& request, std::shared_ptr<HttpReply> reply) {
    std::lock_guard lock(mutex_);
    if (is_away) return refuse(*reply, 503, "away");
    if (!token.empty() && request.header("authorization") != "Bearer " + token)
      return refuse(*reply, 401, "Unauthorized");
    const std::string& path = request.path;
    // A collection's name is the last word of its path, an object's the one before its own.
    static constexpr std::string_view kCollections[] = {"configmaps", "secrets", "endpointslices", "leases"};
    std::string collection = path.substr(path.rfind('/') + 1), name;
    if (std::ranges::find(kCollections, collection) == std::end(kCollections)) {
      name = collection;
      const size_t end = path.rfind('/');
      collection = path.substr(path.rfind('/', end - 1) + 1, end - path.rfind('/', end - 1) - 1);
    }
    if (request.method == "GET" && name.empty()) return list_or_watch(request, collection, std::move(reply));
    auto& objects = objects_[collection];
    if (request.method == "POST") name = boost::json::parse(request.body).at("metadata").at("name").get_string();
    const auto found = objects.find(name);
    if (request.method == "POST" && found != objects.end()) return refuse(*reply, 409, name + " already exists");
    if (request.method != "POST" && found == objects.end()) return refuse(*reply, 404, name + " not found");
    if (request.method == "POST" || request.method == "PUT") {
      boost::json::object object = boost::json::parse(request.body).get_object();
      const boost::json::object& metadata = object.at("metadata").get_object();
      const auto* version = metadata.if_contains("resourceVersion");
      if (found != objects.end() && version &&
          *version != found->second.at("metadata").at("resourceVersion").get_string())
        return refuse(*reply, 409, "the object has been modified");
      store(found == objects.end() ? "ADDED" : "MODIFIED", collection, name, std::move(object));
      if (fail_writes_once > 0) {
        --fail_writes_once;
        return refuse(*reply, 504, "time-out");
      }
    }
    if (request.method == "DELETE") store("DELETED", collection, name, found->second);
    reply->respond({.body = json_text(objects.contains(name) ? objects.at(name) : boost::json::object())});
  }

  void list_or_watch(const HttpRequest& request, const std::string& collection, std::shared_ptr<HttpReply> reply) {
    const std::string selector = selector_of(request.query);
    if (query_value(request.query, "watch").empty()) {
      ++lists_;
      boost::json::array items;
      for (const auto& [name, object] : objects_[collection])
        if (is_meant(object, selector)) items.push_back(object);
      return reply->respond(
          {.body = json_text(boost::json::object{{"metadata", {{"resourceVersion", std::to_string(revision_)}}},
                                                 {"items", std::move(items)}})});
    }
    const int64_t from = std::stoll(query_value(request.query, "resourceVersion"));
    reply->begin_stream(200, {}, "application/json");
    const Watch watch{reply, collection, selector};
    if (from < oldest_) {
      reply->write(R"({"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}})"
                   "\n");
      return reply->end();
    }
    for (const Event& event : history_)
      if (event.revision > from && event.collection == collection && is_meant(event.object, selector))
        reply->write(event.text + "\n");
    watches_.push_back(watch);
    reply->on_close([this, raw = reply.get()] {
      std::lock_guard lock(mutex_);
      std::erase_if(watches_, [&](const Watch& open) { return open.reply.get() == raw; });
    });
  }

  std::mutex mutex_;
  int64_t revision_ = 100, oldest_ = 0;
  std::map<std::string, std::map<std::string, boost::json::object>> objects_;  // by collection and name
  std::vector<Event> history_;
  std::vector<Watch> watches_;
  int lists_ = 0;
  std::unique_ptr<HttpServer> server_;  // last: it speaks to the rest
};

}  // namespace lk::testing
