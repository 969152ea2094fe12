// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/path_guard.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/plain_text.h"
#include "lk/serve/adapters/adapter_stat.h"

namespace lk {
namespace {

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_;
};

// Without openat2: one component at a time, no link at all and no "..". Sets errno.
Fd walk_beneath(int root, std::string_view relative, int flags) {
  Fd current(::openat(root, ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  while (current.ok() && !relative.empty()) {
    const size_t slash = relative.find('/');
    const std::string part(relative.substr(0, slash));
    relative = slash == std::string_view::npos ? std::string_view() : relative.substr(slash + 1);
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      errno = EXDEV;
      return Fd();
    }
    // O_NOFOLLOW with O_PATH opens a link itself; O_DIRECTORY then refuses it (ENOTDIR), and a last component is looked
    // at below.
    current = Fd(::openat(current.get(), part.c_str(),
                          O_PATH | O_NOFOLLOW | O_CLOEXEC | (relative.empty() ? flags & O_DIRECTORY : O_DIRECTORY)));
    struct stat info {};
    if (current.ok() && ::fstat(current.get(), &info) == 0 && S_ISLNK(info.st_mode)) {
      errno = ELOOP;
      return Fd();
    }
  }
  return current;
}

// `relative` opened as O_PATH without leaving `root`. Sets errno; EXDEV = it would leave.
Fd open_beneath(int root, const std::string& relative, int flags) {
  open_how how{};
  how.flags = static_cast<uint64_t>(O_PATH | O_CLOEXEC | flags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  for (int attempt = 0; attempt < 64; ++attempt) {
    const long fd = ::syscall(SYS_openat2, root, relative.c_str(), &how, sizeof how);
    if (fd >= 0) return Fd(static_cast<int>(fd));
    if (errno == ENOSYS || errno == EPERM)
      return walk_beneath(root, relative, flags);  // EPERM: a sandbox that does not know the call
    if (errno != EAGAIN && errno != EINTR)
      return Fd();  // EAGAIN: something was renamed meanwhile and ".." could not be judged
  }
  return Fd();
}

std::optional<std::string> path_of(int fd) {
  char buffer[PATH_MAX];
  const ssize_t size = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), buffer, sizeof buffer);
  if (size <= 0 || size == static_cast<ssize_t>(sizeof buffer) || buffer[0] != '/') return std::nullopt;
  return std::string(buffer, static_cast<size_t>(size));
}

// `path` without the directory `root` at its front; nothing when it does not begin with it.
std::optional<std::string> strip_root(std::string_view path, std::string_view root) {
  while (root.size() > 1 && root.back() == '/') root.remove_suffix(1);
  if (root == "/") root = "";
  if (!path.starts_with(root)) return std::nullopt;
  path.remove_prefix(root.size());
  if (!path.empty() && path.front() != '/') return std::nullopt;
  while (!path.empty() && path.front() == '/') path.remove_prefix(1);
  return path.empty() ? "." : std::string(path);
}

struct Beneath {
  Fd root, directory;
  std::string path;  // canonical
};

Status outside(const std::string& path) {
  return permission_denied("\"{}\" is not a directory beneath the adapter roots", printable(path, 256));
}

Result<Beneath> find_beneath(const std::vector<std::string>& roots, const std::string& path) {
  if (path.empty() || path.size() >= PATH_MAX || path.find('\0') != std::string::npos)
    return invalid_argument("the path is empty, too long, or has a NUL byte");
  bool missing = false, unreadable = false, refused = false;
  for (const std::string& name : roots) {
    Beneath found{.root = Fd(::open(name.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)), .directory = Fd(), .path = {}};
    if (!found.root.ok()) continue;
    const std::optional<std::string> canonical_root = path_of(found.root.get());
    if (!canonical_root) continue;
    std::optional<std::string> relative = path;
    if (path.front() == '/') {
      relative = strip_root(path, name);
      if (!relative) relative = strip_root(path, *canonical_root);
      if (!relative) continue;
    }
    found.directory = open_beneath(found.root.get(), *relative, O_DIRECTORY);
    if (!found.directory.ok()) {
      (errno == ENOENT ? missing : errno == EACCES ? unreadable : refused) = true;
      continue;
    }
    const std::optional<std::string> canonical = path_of(found.directory.get());
    if (!canonical || !strip_root(*canonical, *canonical_root)) continue;  // moved out of the root just now
    found.path = *canonical;
    return found;
  }
  if (unreadable)
    return permission_denied("\"{}\" cannot be read by the server: check the modes of its directories",
                             printable(path, 256));
  if (missing && !refused) return not_found("no directory \"{}\" beneath the adapter roots", printable(path, 256));
  return outside(path);
}

}  // namespace

Result<std::string> resolve_beneath(const std::vector<std::string>& roots, const std::string& path) {
  LK_ASSIGN_OR_RETURN(Beneath found, find_beneath(roots, path));
  return found.path;
}

bool is_beneath(const std::vector<std::string>& roots, int fd) {
  const std::optional<std::string> path = path_of(fd);
  for (const std::string& name : roots) {
    const Fd root(::open(name.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    const std::optional<std::string> canonical = root.ok() ? path_of(root.get()) : std::nullopt;
    if (path && canonical && strip_root(*path, *canonical)) return true;
  }
  return false;
}

std::vector<std::string> roots_of(const std::vector<std::string>& roots, std::string_view tenant) {
  std::vector<std::string> found;
  for (const std::string& root : roots) {
    const size_t at = root.find(kTenantDirectory);
    if (at == std::string::npos)
      found.push_back(root);
    else if (tenant.empty())
      found.push_back(root.substr(0, std::max<size_t>(at - 1, 1)));
    else
      found.push_back(fmt::format("{}{}{}", root.substr(0, at), tenant, root.substr(at + kTenantDirectory.size())));
  }
  return found;
}

Result<std::string> resolve_adapter_directory(const std::vector<std::string>& roots, const std::string& path) {
  LK_ASSIGN_OR_RETURN(Beneath found, find_beneath(roots, path));
  const std::optional<std::string> root = path_of(found.root.get());
  const std::optional<std::string> relative = root ? strip_root(found.path, *root) : std::nullopt;
  if (!relative) return outside(path);
  std::vector<std::string> names(std::begin(kAdapterFiles), std::end(kAdapterFiles));
  for (const std::string& chat : list_chat_templates(found.path)) names.push_back(chat.substr(found.path.size() + 1));
  for (const std::string& name : names) {
    const Fd file =
        open_beneath(found.root.get(), *relative + "/" + name, 0);  // links may leave the directory, not the root
    struct stat info {};
    if (!file.ok() && errno == ENOENT) continue;  // the loader says what is missing
    if (!file.ok())
      return permission_denied("{} of \"{}\" is a link that leaves the adapter roots, or unreadable", name,
                               printable(path, 256));
    if (::fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode))
      return invalid_argument("{} of \"{}\" is not a regular file", name, printable(path, 256));
  }
  return found.path;
}

Result<std::string> resolve_listed_directory(const std::string& directory, const std::string& name,
                                             const std::vector<std::string>& roots) {
  Result<std::string> found = resolve_adapter_directory({directory}, name);
  if (found.status().code() != StatusCode::kPermissionDenied) return found;
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(join_path(directory, name), error);
  if (error) return found.status();
  Result<std::string> elsewhere = resolve_adapter_directory(roots_of(roots, ""), canonical.string());
  return elsewhere.ok() ? std::move(elsewhere) : std::move(found);
}

}  // namespace lk
