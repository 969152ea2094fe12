// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/grammar.h"
