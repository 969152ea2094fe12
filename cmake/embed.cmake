# SPDX-License-Identifier: Apache-2.0
# Run by embed_files() at build time: writes FILE as a C++ array with its size and the first half of its SHA-256.
file(READ ${FILE} hex HEX)
file(SHA256 ${FILE} digest)
string(SUBSTRING ${digest} 0 32 digest)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
file(WRITE ${OUT} "// Made by cmake/embed.cmake from ${NAME}.\n#include \"lk/serve/http/embedded.h\"\n"
  "namespace lk::embedded {\nnamespace {\nconst unsigned char bytes[] = {${bytes}0};\n}\n"
  "extern const File ${SYMBOL} = {bytes, sizeof(bytes) - 1, \"${digest}\"};\n}\n")
