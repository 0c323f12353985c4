# `find_package(gsa)` from outside: target gsa::gsa.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS libgsa EXPORT gsaTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS gsa_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES tools/train_tokenizer.py DESTINATION ${CMAKE_INSTALL_DATADIR}/gsa/tools)  # gsa tokenizer train
install(DIRECTORY gsa/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gsa FILES_MATCHING PATTERN "*.h" PATTERN "testing" EXCLUDE)
install(EXPORT gsaTargets NAMESPACE gsa:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gsa)
configure_package_config_file(cmake/gsaConfig.cmake.in ${CMAKE_BINARY_DIR}/gsaConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gsa)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/gsaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/gsaConfig.cmake ${CMAKE_BINARY_DIR}/gsaConfigVersion.cmake cmake/LibTorch.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gsa)
