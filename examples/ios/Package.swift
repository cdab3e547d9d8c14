// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "MDExport",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [
        .library(name: "MDExportKit", targets: ["MDExportKit"]),
        .library(name: "MDExportUI", targets: ["MDExportUI"]),
    ],
    targets: [
        // Needs no framework of Apple but Foundation: its tests run on Linux, too.
        .target(name: "MDExportKit"),
        .target(name: "MDExportCoreML", dependencies: ["MDExportKit"]),
        .target(name: "MDExportUI", dependencies: ["MDExportCoreML"]),
        .testTarget(name: "MDExportKitTests", dependencies: ["MDExportKit"]),
    ]
)

#if canImport(Darwin)
    package.targets.append(.executableTarget(name: "Sample", dependencies: ["MDExportUI"]))
#endif
