// SPDX-License-Identifier: Apache-2.0
// Random identifiers and secrets from the operating system's generator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace lk {

// Aborts when the system has no randomness to give: nothing safe can be done without.
void fill_random(std::span<uint8_t> bytes);
// Characters 0-9 A-Z a-z, each equally likely (5.95 bits a character).
std::string random_base62(size_t length);

}  // namespace lk
