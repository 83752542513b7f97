"""Draw a figure on a stage with OpenGL (moderngl, without a display), and trace where its pixels were in the first frame.

A `View` maps space to the frame. Pictures are drawn larger than the frame and averaged; traces are exact at pixel centres.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lfdm.config.video import Size
from lfdm.data.alpha import unpremultiply
from lfdm.data.characters.figures import Figure
from lfdm.data.characters.gltf import TEXTURE_SIZE
from lfdm.data.characters.tracing import TRACE_SCALE, frame_truth
from lfdm.data.truth import Truth
from lfdm.errors import MissingExtraError, UserError

SUPERSAMPLING = 3
"""Pictures are drawn at this multiple of the frame's height and width."""
SHADOW_SIZE = 1024

_VERTEX = """
#version 330
uniform mat4 view; uniform mat4 light;
in vec3 position; in vec3 normal; in vec3 color; in vec3 coordinates;
out vec3 v_normal; out vec3 v_color; out vec3 v_coordinates; out vec4 v_light;
void main() {
    gl_Position = view * vec4(position, 1.0);
    v_normal = normal; v_color = color; v_coordinates = coordinates; v_light = light * vec4(position, 1.0);
}
"""
_FRAGMENT = """
#version 330
uniform sampler2DArray textures; uniform sampler2DShadow shadows;
uniform vec3 sun; uniform float facing; uniform float shading; uniform float shadow_strength; uniform float exposure;
in vec3 v_normal; in vec3 v_color; in vec3 v_coordinates; in vec4 v_light;
out vec4 result;
void main() {
    vec3 color = v_color;
    if (v_coordinates.z > -0.5) color *= pow(texture(textures, v_coordinates).rgb, vec3(2.2));
    vec3 normal = normalize(gl_FrontFacing ? v_normal : -v_normal) * facing;
    float lit = max(dot(normal, sun), 0.0);
    vec3 place = v_light.xyz / v_light.w * 0.5 + 0.5;
    bool beyond = any(lessThan(place, vec3(0.0))) || any(greaterThan(place, vec3(1.0)));
    float open = beyond ? 1.0 : 0.0;
    if (!beyond) for (int x = -1; x <= 1; x++) for (int y = -1; y <= 1; y++)
        open += texture(shadows, vec3(place.xy + vec2(x, y) / 1024.0, place.z - 0.004)) / 9.0;
    lit *= mix(1.0, open, shadow_strength);
    color *= mix(1.0, 0.42 + 0.12 * normal.y + 0.62 * lit, shading) * exposure;
    result = vec4(pow(clamp(color, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
}
"""
_TRACE_VERTEX = """
#version 330
uniform mat4 view; uniform mat4 first_view;
in vec3 position; in vec3 first_position;
out vec4 v_first;
void main() { gl_Position = view * vec4(position, 1.0); v_first = first_view * vec4(first_position, 1.0); }
"""
_TRACE_FRAGMENT = """
#version 330
uniform float id;
in vec4 v_first;
out vec4 result;
void main() { result = vec4(v_first.xy / v_first.w, v_first.w, id); }
"""
_FIGURE, _STAGE = 1.0, 0.0


@dataclass(frozen=True, eq=False)
class Stage:
    """Ground and wall, which never move."""

    positions: np.ndarray
    """(v, 3)."""
    normals: np.ndarray
    colors: np.ndarray
    """(v, 3) linear RGB."""
    texture_coordinates: np.ndarray
    """(v, 2)."""
    layers: np.ndarray
    """(v,): index of the texture, -1 for none."""
    triangles: np.ndarray
    textures: tuple[np.ndarray, ...]
    """(H, W, 3) uint8 each."""


@dataclass(frozen=True, eq=False)
class View:
    """A camera at one moment: its matrix (4, 4) from space to clip coordinates, and the exposure."""

    matrix: np.ndarray
    exposure: float = 1.0

    @property
    def facing(self) -> float:
        """-1 for a mirrored view, in which the front of a triangle looks like its back, else 1."""
        return -float(np.sign(np.linalg.det(self.matrix[[0, 1, 3], :3])))


@dataclass(frozen=True, eq=False)
class Light:
    """The sun: its direction (3,), how strongly surfaces are shaded and shadows are cast (0 to 1)."""

    sun: np.ndarray
    shading: float = 1.0
    shadows: float = 0.0


def make_context() -> Any:
    """Return an OpenGL context without a display.

    Raises:
        MissingExtraError: moderngl is not installed.
        UserError: the machine has no EGL.
    """
    try:
        import moderngl
    except ImportError as error:
        raise MissingExtraError("rendering characters needs moderngl: pip install 'lfdm[render]'") from error
    try:
        return moderngl.create_context(standalone=True, backend="egl")  # type: ignore[call-arg]
    except Exception as error:  # the loader raises plain Exception
        raise UserError(f"no OpenGL without a display ({error}); on Debian: apt install libegl1 libgl1-mesa-dri") from error


class Renderer:
    """Draws one figure on one stage."""

    def __init__(self, context: Any, figure: Figure, stage: Stage, size: Size) -> None:
        self.context, self.figure, self.stage, self.size = context, figure, stage, size
        self.picture = context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        self.trace = context.program(vertex_shader=_TRACE_VERTEX, fragment_shader=_TRACE_FRAGMENT)
        self.shadow_map = context.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.shadow_map.compare_func = "<="
        self.shadow_frame = context.framebuffer(depth_attachment=self.shadow_map)
        self.textures = self._upload_textures([*stage.textures, *figure.textures])
        layers = np.where(figure.layers >= 0, figure.layers + len(stage.textures), -1)
        self.meshes = [
            _Mesh(self, stage.positions, stage.normals, stage.colors, stage.texture_coordinates, stage.layers, stage.triangles),
            _Mesh(self, figure.positions, figure.normals, figure.colors, figure.texture_coordinates, layers, figure.triangles),
        ]
        height, width = size
        self.canvas = self._frame(height * SUPERSAMPLING, width * SUPERSAMPLING, "f1")
        self.traced = self._frame(height, width, "f4")
        self.first = self._frame(height * TRACE_SCALE, width * TRACE_SCALE, "f4")

    def draw(self, skinned: tuple[np.ndarray, np.ndarray], view: View, light: Light, *, transparent: bool = False) -> np.ndarray:
        """Draw the figure with these positions and normals (v, 3) on the stage: (H, W, 3) uint8, or `transparent` (H, W, 4)."""
        self.meshes[1].move(*skinned)
        light_matrix = _light_matrix(skinned[0], light.sun)
        self.context.enable(self.context.DEPTH_TEST)
        if light.shadows > 0:
            self.shadow_frame.use()
            self.shadow_frame.clear()
            self._set(self.trace, view=light_matrix, first_view=light_matrix)
            self.meshes[1].draw_trace()
        self.canvas.use()
        self.canvas.clear()
        self.textures.use(0)
        self.shadow_map.use(1)
        self._set(self.picture, view=view.matrix, light=light_matrix)
        uniforms = {"textures": 0, "shadows": 1, "shading": light.shading, "shadow_strength": light.shadows}
        uniforms |= {"exposure": view.exposure, "sun": tuple(light.sun), "facing": view.facing}
        for name, value in uniforms.items():
            self.picture[name].value = value
        for mesh in self.meshes[transparent:]:
            mesh.draw()
        height, width = self.size
        channels = 4 if transparent else 3
        pixels = np.frombuffer(self.canvas.read(components=channels, alignment=1), np.uint8)
        pixels = pixels.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, channels)[::-1, ::-1]
        means = np.rint(pixels.mean((1, 3), dtype=np.float32)).astype(np.uint8)
        return unpremultiply(means) if transparent else means

    def trace_clip(self, skinned: list[np.ndarray], views: list[View]) -> Truth:
        """Return the exact motion of a clip from the figure's positions (v, 3) and the views of its frames."""
        first = self._trace(skinned[0], skinned[0], views[0], views[0], self.first)
        frames = [
            self._trace(positions, skinned[0], view, views[0], self.traced)
            for positions, view in zip(skinned, views, strict=True)
        ]
        height = float(np.ptp(skinned[0][:, 1]))
        parts = [frame_truth(frame, first, self.size, height) for frame in frames]
        flow, visible, interior, figure = (np.stack(values) for values in zip(*parts, strict=True))
        drift = np.array([np.median(f[~mask], axis=0) if (~mask).any() else (0, 0) for f, mask in zip(flow, figure, strict=True)])
        return Truth(flow, visible, interior, figure, drift.astype(np.float32))

    def release(self) -> None:
        """Free what the context holds for this figure."""
        for resource in (*self.meshes, self.canvas, self.traced, self.first, self.shadow_frame, self.shadow_map, self.textures):
            resource.release()

    def _trace(self, positions: np.ndarray, first: np.ndarray, view: View, first_view: View, target: Any) -> np.ndarray:
        """Return for each pixel of `target` its place in the first frame (pixels), depth, and 1 on the figure: (h, w, 4)."""
        self.meshes[1].move(positions, None, first)
        target.use()
        self.context.enable(self.context.DEPTH_TEST)
        target.clear()
        self._set(self.trace, view=view.matrix, first_view=first_view.matrix)
        for mesh, number in zip(self.meshes, (_STAGE, _FIGURE), strict=True):
            self.trace["id"].value = number
            mesh.draw_trace()
        values = (
            np.frombuffer(target.read(components=4, dtype="f4"), np.float32).reshape(target.height, target.width, 4)[::-1].copy()
        )
        height, width = self.size
        values[..., 0] = (values[..., 0] + 1) / 2 * width
        values[..., 1] = (1 - values[..., 1]) / 2 * height
        return values

    def _set(self, program: Any, **matrices: np.ndarray) -> None:
        for name, matrix in matrices.items():
            program[name].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())

    def _frame(self, height: int, width: int, dtype: str) -> Any:
        color = self.context.texture((width, height), 4, dtype=dtype)
        return self.context.framebuffer([color], self.context.depth_renderbuffer((width, height)))

    def _upload_textures(self, pictures: list[np.ndarray]) -> Any:
        pictures = pictures or [np.full((1, 1, 3), 255, np.uint8)]
        size = (TEXTURE_SIZE, TEXTURE_SIZE)
        layers = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)) for picture in pictures]
        textures = self.context.texture_array((*size, len(layers)), 3, np.stack(layers).tobytes())
        textures.build_mipmaps()
        textures.anisotropy = 8.0
        return textures


class _Mesh:
    """Vertices and triangles on the graphics card."""

    def __init__(
        self,
        renderer: Renderer,
        positions: np.ndarray,
        normals: np.ndarray,
        colors: np.ndarray,
        texture_coordinates: np.ndarray,
        layers: np.ndarray,
        triangles: np.ndarray,
    ) -> None:
        context = renderer.context

        def upload(values: np.ndarray) -> Any:
            return context.buffer(np.ascontiguousarray(values, np.float32).tobytes())

        self.positions, self.first, self.normals = upload(positions), upload(positions), upload(normals)
        color, coordinates = upload(colors), upload(np.c_[texture_coordinates, layers])
        index = context.buffer(triangles.astype(np.uint32).tobytes())
        self.buffers = [self.positions, self.first, self.normals, color, coordinates, index]
        picture = [(self.positions, "3f", "position"), (self.normals, "3f", "normal")]
        picture += [(color, "3f", "color"), (coordinates, "3f", "coordinates")]
        self.picture = context.vertex_array(renderer.picture, picture, index)
        trace = [(self.positions, "3f", "position"), (self.first, "3f", "first_position")]
        self.trace = context.vertex_array(renderer.trace, trace, index)

    def move(self, positions: np.ndarray, normals: np.ndarray | None, first: np.ndarray | None = None) -> None:
        for buffer, values in ((self.positions, positions), (self.normals, normals), (self.first, first)):
            if values is not None:
                buffer.write(np.ascontiguousarray(values, np.float32).tobytes())

    def draw(self) -> None:
        self.picture.render()

    def draw_trace(self) -> None:
        self.trace.render()

    def release(self) -> None:
        for resource in (self.picture, self.trace, *self.buffers):
            resource.release()


def _light_matrix(positions: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Return the parallel projection (4, 4) along the sun's rays onto the shadow map, around the figure."""
    low, high = positions.min(0), positions.max(0)
    middle, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    right = np.cross([0.0, 1.0, 0.0], sun)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(sun, right), sun])
    matrix = np.eye(4)
    matrix[:3, :3] = axes / radius
    matrix[2] *= -1 / 4  # the ground may lie far behind the figure
    matrix[:3, 3] = -matrix[:3, :3] @ middle
    return matrix
