// The arguments of the program infid.
#pragma once

#include <string>
#include <vector>

#include "infid/infid.hpp"

struct Arguments {
  std::string folder, prompt, template_path, output = "out.png", save_person;
  bool has_prompt = false;
  std::vector<std::string> people, photos;
  infid::Options options;
  infid::Settings settings;
  std::optional<int> face;
  int bench = 0;
  bool json = false, quiet = false, help = false, version = false;
};

extern const char kHelp[];

// Throws infid::Error of kind input, with sentences as those of `infid-export generate`.
Arguments parse_arguments(const std::vector<std::string>& words);
