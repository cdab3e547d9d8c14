import Foundation
import MDExportUI
import SwiftUI

/// In an app for iPhone, `models` is a folder of the bundle; with `swift run Sample FOLDER` on a Mac, any folder.
@main
struct SampleApp: App {
    private let folder =
        CommandLine.arguments.dropFirst().first.map { URL(fileURLWithPath: $0) }
        ?? Bundle.main.bundleURL.appendingPathComponent("models")

    var body: some Scene {
        WindowGroup { GenerateScreen(folder: folder) }
    }
}
