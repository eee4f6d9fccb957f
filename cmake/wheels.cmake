# Injected with -DCMAKE_PROJECT_INCLUDE in a wheel build only; a normal ROS 2 build never reads it.
# 1. The wheels have no setup.bash: point ament at the prefix that holds its resource index.
if(NOT DEFINED ENV{AMENT_PREFIX_PATH})
  find_package(rosidl_cmake REQUIRED CONFIG)
  get_filename_component(_ros_prefix "${rosidl_cmake_DIR}/../../.." ABSOLUTE)
  set(ENV{AMENT_PREFIX_PATH} "${_ros_prefix}")
  list(PREPEND CMAKE_PREFIX_PATH "${_ros_prefix}")
endif()

# 2. Exported targets name include folders of the machine the wheels were built on, and CMake
#    refuses a missing folder: at the end of configure, drop those that are not here.
function(_drop_missing_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(dirs)
      set(kept "")
      foreach(dir IN LISTS dirs)
        if(dir MATCHES "\\$<" OR EXISTS "${dir}")
          list(APPEND kept "${dir}")
        endif()
      endforeach()
      set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${kept}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL _drop_missing_includes)
